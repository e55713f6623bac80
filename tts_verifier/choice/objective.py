"""What the search climbs: a weighted mean of named scores, and the one order of trials.

The default is the reward of the official scorer, 0.8 alignment + 0.1 aesthetics + 0.1
plausibility (ImageDoctor, modify/flow_grpo/flow_grpo/doctor_hp.py). NaN ranks last; this is
the one place that says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.types import Choice, Look, Stored, Trial

OFFICIAL_WEIGHTS: Mapping[str, float] = {
    "semantic_alignment": 0.8,
    "aesthetics": 0.1,
    "plausibility": 0.1,
}


class Objective:
    """Scores by name -> one number: the weighted sum over the named scores.

    Args:
        weights: score name -> finite weight, at least one of them not zero.

    Raises:
        InputError: weights are empty, all zero or not finite.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        weights = OFFICIAL_WEIGHTS if weights is None else weights
        if not weights or not all(math.isfinite(w) for w in weights.values()):
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

    def __repr__(self) -> str:
        return f"Objective({self.weights})"


@dataclass(frozen=True, slots=True, eq=False)
class Pick:
    """What counts of a trial when the search is over; the fields are a `Trial`'s."""

    id: str
    objective: float
    scores: Mapping[str, float]
    judge: Mapping[str, float]
    image: Stored[Image.Image] | None
    error: str

    @classmethod
    def of(cls, trial: Trial) -> Pick:
        """Returns a trial without its proposal, whose mask may be large, and its maps."""
        return cls(*(getattr(trial, name) for name in cls.__slots__))


def order(values: Sequence[float]) -> list[int]:
    """Returns indices from best to worst; equal values keep their order, NaN comes last."""
    return sorted(range(len(values)), key=lambda i: (math.isnan(values[i]), -values[i], i))


def choose(history: Sequence[Trial]) -> Choice:
    """Chooses the finished trial of the highest objective.

    A `Look` at an image replaces the quick score of the trial that it looked at: both rows
    refer to the same picture, and the later, fuller verdict counts.
    """
    looked = {t.parent_id for t in history if isinstance(t.proposal, Look)}
    usable = [t for t in history if t.finished and t.id not in looked]
    ranked = tuple(usable[i] for i in order([t.objective for t in usable]))
    best = ranked[0] if ranked and not math.isnan(ranked[0].objective) else None
    return Choice(best, ranked)
