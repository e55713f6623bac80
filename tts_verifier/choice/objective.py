"""The objective, a weighted sum of named scores, and the order of trials by it.

The default is the reward of the official scorer, 0.8 alignment + 0.1 aesthetics + 0.1
plausibility (ImageDoctor, modify/flow_grpo/flow_grpo/doctor_hp.py). NaN ranks last; every ranking
in the package goes through `order`.
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
    """Computes one number from scores by name: their weighted sum.

    Safe to share between threads: it is immutable by convention.

    Args:
        weights: score name -> finite weight, not all zero; None = `OFFICIAL_WEIGHTS`.

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

    A `Look` replaces the trial that it looked at: both refer to the same image, and the later,
    fuller verdict counts. A look that failed replaces nothing.

    Args:
        history: the trials of one prompt.
    """
    looked = {t.parent_id for t in history if isinstance(t.proposal, Look) and t.finished}
    usable = [t for t in history if t.finished and t.id not in looked]
    ranked = tuple(usable[i] for i in order([t.objective for t in usable]))
    best = ranked[0] if ranked and not math.isnan(ranked[0].objective) else None
    return Choice(best, ranked)
