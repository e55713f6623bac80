"""The objective, one number from named scores, and the order of trials by it.

The default is the reward of the official scorer, 0.8 alignment + 0.1 aesthetics + 0.1
plausibility (ImageDoctor, modify/flow_grpo/flow_grpo/doctor_hp.py). NaN ranks last; every ranking
in the package goes through `order`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tts_verifier.choice.combine import COMBINATIONS, RELATIVE, Combination, combine
from tts_verifier.choice.tournament import by_comparisons
from tts_verifier.errors import InputError, suggestion
from tts_verifier.types import VERIFIES_ONLY, Choice, Compare, Look, Rewrite, Trial
from tts_verifier.types.score_names import SIGMA

OFFICIAL_WEIGHTS: Mapping[str, float] = {
    "semantic_alignment": 0.8,
    "aesthetics": 0.1,
    "plausibility": 0.1,
}


class Objective:
    """Computes one number from scores by name: by default their weighted sum.

    Safe to share between threads: it is immutable by convention.

    A score is missing if the verdict lacks it, or if it is not finite. With `missing="fail"`, the
    objective of such an image is NaN, and it ranks last; with "skip", its other scores decide. If
    all scores are missing, the objective is NaN in both cases.

    Args:
        weights: score name -> finite weight, not all zero; None = `OFFICIAL_WEIGHTS`. With a
            negative weight, lower scores are better.
        combine: "sum"; "worst", the smallest product of weight and score; or, among all images of
            a prompt, "mean_rank", the weighted mean of their ranks by each score, or
            "lexicographic", their rank by the first score, then by the second, … (see `combine`).
        missing: "fail" or "skip".
        step: for "lexicographic": scores that round to the same multiple of it are equal.

    Raises:
        InputError: weights are no mapping of names to numbers, are empty, all zero or not finite;
            or another argument has no valid value.
    """

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        combine: Combination = "sum",
        *,
        missing: Literal["fail", "skip"] = "fail",
        step: float = 0.0,
    ) -> None:
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
        _check_word("combine", combine, COMBINATIONS)
        _check_word("missing", missing, ("fail", "skip"))
        if not _is_entry(("step", step)) or step < 0 or (step and combine != "lexicographic"):
            raise InputError(
                "An objective's step must be a finite number, not negative, and belongs to "
                f"combine 'lexicographic', got {step!r} with {combine!r}.",
                argument="step",
            )
        self.weights = dict(weights)
        self.combine: Combination = combine
        self.missing: Literal["fail", "skip"] = missing
        self.step = step

    @property
    def relative(self) -> bool:
        """Whether the number of an image depends on the other images of its prompt."""
        return self.combine in RELATIVE

    def __call__(self, scores: Mapping[str, float]) -> float:
        """Returns the number of one image; NaN when it is not usable.

        A relative objective gives a stand-in, until all images are there: the weighted sum for
        "mean_rank", and the product of weight and first score for "lexicographic".
        """
        how: Combination = "sum" if self.relative else self.combine
        only = 1 if self.combine == "lexicographic" else None
        return float(self._numbers([scores], how, only)[0])

    def among(self, scores: Sequence[Mapping[str, float]]) -> list[float]:
        """Returns the number of each image among all of them; NaN for one that is not usable.

        Args:
            scores: of all images of one prompt that are verified in the same detail.
        """
        numbers: list[float] = self._numbers(scores, self.combine).tolist() if scores else []
        return numbers

    def sigma(self, scores: Mapping[str, float]) -> float:
        """Returns the standard deviation of the number, from scores named `NAME_sigma`.

        The errors of different scores are taken to be independent.

        Returns:
            0 if no score has one, or if the combination is no sum.
        """
        if self.combine != "sum":
            return 0.0
        return math.hypot(*(w * sigma_of(scores, name) for name, w in self.weights.items()))

    def about(self) -> dict[str, Any]:
        """Returns everything that identifies it, as JSON values."""
        if repr(self) == repr(Objective(self.weights)):
            return dict(self.weights)
        # As a list, because the order of the scores counts.
        weights = [[name, weight] for name, weight in self.weights.items()]
        return {
            "weights": weights,
            "combine": self.combine,
            "missing": self.missing,
            "step": self.step,
        }

    def check_names(self, known: Collection[str] | None) -> None:
        """Raises InputError when it names a score that a verifier does not give.

        Args:
            known: names of the verifier's scores; None = not known yet.
        """
        check_score_names(self.weights, known, "An objective", argument="weights")

    def _numbers(
        self, scores: Sequence[Mapping[str, float]], how: Combination, only: int | None = None
    ) -> NDArray[np.float64]:
        weights = {name: w for name, w in self.weights.items() if w}
        names = list(weights)[:only]
        table = np.array([[row.get(name, math.nan) for name in names] for row in scores], float)
        table[~np.isfinite(table)] = math.nan
        if self.missing == "fail":
            needed = [[row.get(name, math.nan) for name in weights] for row in scores]
            table[~np.isfinite(np.array(needed, float)).all(axis=1)] = math.nan
        factors = np.array([weights[name] for name in names], float)
        # Finite scores and weights may still overflow.
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = combine(table, factors, how, step=self.step)
        return np.where(np.isfinite(numbers), numbers, math.nan)

    def __repr__(self) -> str:
        options = [
            f", {name}={value!r}"
            for name, value, default in (
                ("combine", self.combine, "sum"),
                ("missing", self.missing, "fail"),
                ("step", self.step, 0.0),
            )
            if value != default
        ]
        return f"Objective({self.weights}{''.join(options)})"


def _check_word(argument: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(
            f"An objective's {argument} must be one of {', '.join(allowed)}, got {value!r}.",
            argument=argument,
        )


def sigma_of(scores: Mapping[str, float], name: str) -> float:
    """Returns the standard deviation of a score; 0 if the verdict states none that can be one."""
    value = scores.get(name + SIGMA)
    # A log has no infinity: what is not finite must count as what is not there.
    return value if value is not None and 0 <= value < math.inf else 0.0


def with_objectives(history: Sequence[Trial], objective: Objective) -> list[Trial]:
    """Returns the trials of one prompt with the objectives that they have among each other.

    Images are compared that are verified in the same detail after the same share of the steps.

    Args:
        history: the trials of one prompt.
        objective: one that is not relative leaves the trials as they are.
    """
    trials = list(history)
    if not objective.relative:
        return trials
    groups: dict[tuple[str, float], list[int]] = {}
    for place, trial in enumerate(trials):
        if trial.verdict is not None and not isinstance(trial.proposal, Compare | Rewrite):
            groups.setdefault((trial.verdict.detail, trial.progress), []).append(place)
    for places in groups.values():
        values = objective.among([trials[place].scores for place in places])
        for place, value in zip(places, values, strict=True):
            trials[place] = replace(trials[place], objective=value)
    return trials


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


def order(values: Sequence[float]) -> list[int]:
    """Returns indices from best to worst; equal values keep their order, NaN comes last."""
    return sorted(range(len(values)), key=lambda i: (math.isnan(values[i]), -values[i], i))


def choose(history: Sequence[Trial]) -> Choice:
    """Chooses the finished trial of the highest objective.

    A `Look` replaces the trial that it looked at: both refer to the same image. Quick scores and
    the scores of looks are on different scales and are never compared. All images are first ranked
    by their first verdicts. Then the images at the top that all have a look are ranked by their
    looks; a failed look replaces nothing and ranks last among these. In the end, the images at the
    top that were all compared with each other are ranked by these comparisons (see `tournament`).

    Args:
        history: the trials of one prompt.
    """
    looked = {t.parent_id for t in history if isinstance(t.proposal, Look)}
    looks = {t.parent_id: t for t in history if isinstance(t.proposal, Look) and t.finished}
    images = [t for t in history if not isinstance(t.proposal, VERIFIES_ONLY)]
    images = [t for t in images if t.finished or t.id in looks]
    ranked = [images[i] for i in order([t.objective for t in images])]
    top = list(takewhile(lambda t: t.id in looked, ranked))
    values = [looks[t.id].objective if t.id in looks else math.nan for t in top]
    ranked[: len(top)] = [top[i] for i in order(values)]
    ranked = by_comparisons(ranked, history)
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
