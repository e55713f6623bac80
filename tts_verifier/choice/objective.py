"""The objective, a weighted sum of named scores, and the order of trials by it.

The default is the reward of the official scorer, 0.8 alignment + 0.1 aesthetics + 0.1
plausibility (ImageDoctor, modify/flow_grpo/flow_grpo/doctor_hp.py). NaN ranks last; every ranking
in the package goes through `order`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from PIL import Image

from tts_verifier.errors import InputError, suggestion
from tts_verifier.types import Choice, Look, Stored, Trial

OFFICIAL_WEIGHTS: Mapping[str, float] = {
    "semantic_alignment": 0.8,
    "aesthetics": 0.1,
    "plausibility": 0.1,
}


class Objective:
    """Computes one number from scores by name: their weighted sum.

    Safe to share between threads: it is immutable by convention.

    Args:
        weights: score name -> finite weight, not all zero; None = `OFFICIAL_WEIGHTS`.

    Raises:
        InputError: weights are no mapping of names to numbers, are empty, all zero or not finite.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        weights = OFFICIAL_WEIGHTS if weights is None else weights
        if (
            not isinstance(weights, Mapping)
            or not weights
            or not all(map(_is_entry, weights.items()))
        ):
            raise InputError(
                f"An objective needs finite weights by score name, got {weights!r}.",
                argument="weights",
            )
        if not any(weights.values()):
            raise InputError(
                "An objective needs a weight that is not zero, all of these are.",
                argument="weights",
            )
        self.weights = dict(weights)

    def __call__(self, scores: Mapping[str, float]) -> float:
        """Returns the weighted sum; NaN when a named score is missing or not finite."""
        total = sum(w * scores.get(name, math.nan) for name, w in self.weights.items() if w)
        return total if math.isfinite(total) else math.nan

    def check_names(self, known: Collection[str] | None) -> None:
        """Raises InputError when it names a score that a verifier does not give.

        Args:
            known: names of the verifier's scores; None = not known yet.
        """
        check_score_names(self.weights, known, "An objective", argument="weights")

    def __repr__(self) -> str:
        return f"Objective({self.weights})"


def as_objective(value: Any) -> Objective | None:
    """Returns an objective, which may be given as its weights; None stays None.

    Raises:
        InputError: it is something else, or the weights are not usable.
    """
    if value is None or isinstance(value, Objective):
        return value
    if isinstance(value, Mapping):
        return Objective(value)
    raise InputError(
        "An objective must be an Objective or weights by score name, such as "
        f"{{'overall': 1.0}}, got {value!r}.",
        argument="objective",
    )


def check_score_names(
    wanted: Iterable[str], known: Collection[str] | None, what: str, *, argument: str
) -> None:
    """Raises InputError when a name is not one of a verifier's scores; suggests similar ones.

    Args:
        wanted: names of scores.
        known: names of the verifier's scores; None = not known yet.
        what: what names them, to begin the message with.
        argument: the constructor's argument that names them.
    """
    for name in wanted:
        if known is not None and name not in known:
            raise InputError(
                f"{what} must name scores that the verifier gives, got {name!r}. "
                f"{suggestion(str(name), known)}",
                argument=f"{argument}.{name}",
            )


def _is_entry(entry: tuple[Any, Any]) -> bool:
    """Returns whether an entry of a mapping is a name with a finite number."""
    name, weight = entry
    if not isinstance(name, str) or isinstance(weight, bool):
        return False
    try:
        return math.isfinite(weight)
    except (TypeError, OverflowError):
        return False


@dataclass(frozen=True, slots=True, eq=False)
class Pick:
    """The part of a trial that matters once the search is over; the fields are those of `Trial`."""

    id: str
    objective: float
    scores: Mapping[str, float]
    judge: Mapping[str, float]
    image: Stored[Image.Image] | None
    error: str

    @classmethod
    def of(cls, trial: Trial) -> Pick:
        """Returns a trial without its proposal, whose mask may be large, and its heatmaps."""
        return cls(*(getattr(trial, name) for name in cls.__slots__))


def order(values: Sequence[float]) -> list[int]:
    """Returns indices from best to worst; equal values keep their order, NaN comes last."""
    return sorted(range(len(values)), key=lambda i: (math.isnan(values[i]), -values[i], i))


def choose(history: Sequence[Trial]) -> Choice:
    """Chooses the finished trial of the highest objective.

    A `Look` replaces the trial that it looked at: both refer to the same image. Quick scores and
    those of a look are two scales, and no number of one is compared with a number of the other.
    All images are ranked by what they were first verified with. Then the images at the top that
    were all looked at are ranked anew, by their looks. A look that failed replaces nothing, and
    ranks last among them.

    Args:
        history: the trials of one prompt.
    """
    looked = {t.parent_id for t in history if isinstance(t.proposal, Look)}
    looks = {t.parent_id: t for t in history if isinstance(t.proposal, Look) and t.finished}
    images = [t for t in history if not isinstance(t.proposal, Look)]
    images = [t for t in images if t.finished or t.id in looks]
    ranked = [images[i] for i in order([t.objective for t in images])]
    top = list(takewhile(lambda t: t.id in looked, ranked))
    values = [looks[t.id].objective if t.id in looks else math.nan for t in top]
    ranked[: len(top)] = [top[i] for i in order(values)]
    shown = tuple(looks.get(t.id, t) for t in ranked)
    best = shown[0] if shown and not math.isnan(shown[0].objective) else None
    return Choice(best, shown)


def before_look(trial: Trial, history: Iterable[Trial]) -> Trial:
    """Returns the trial that a look looked at, whose scores compare with those of other images.

    Args:
        trial: of the history; one that is no look is returned as it is.
        history: the trials of one prompt.
    """
    if not isinstance(trial.proposal, Look):
        return trial
    return next((t for t in history if t.id == trial.parent_id), trial)
