"""What a run achieved: the first draw against the chosen image, and the held-out judge's scores.

Pass rates have Wilson's 95 % interval (Wilson 1927). The share of the distance closed has a
95 % percentile bootstrap over prompts. Fewer than ten prompts have no interval: the bootstrap of
two equal prompts would say 100 % to 100 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tts_verifier.choice.objective import before_look, choose
from tts_verifier.types import VERIFIES_ONLY, Look, Pick, Prompt, Trial

Interval = tuple[float, float]
"""(low, high)."""

LEAST_PROMPTS: Final = 10
"""Prompts that an interval needs."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptSummary:
    """One prompt: its first finished draw, the chosen trial, and counts of all its trials."""

    prompt: Prompt
    first: Pick | None
    """The first finished image; None if there is none."""
    chosen: Pick | None
    """The chosen trial; None if none is usable."""
    candidates: int = 0
    """Trials that generated an image or failed to; a look at an image is not one."""
    failed: int = 0
    """Trials with an error."""
    tied: bool = False
    """True if another image, verified in the same detail, has the objective of the chosen one."""
    best: Mapping[str, float] = field(default_factory=dict)
    """Score name of the judge -> its highest value among the images that may be chosen."""
    quick: Pick | None = None
    """The chosen image with its quick score; None if it was not looked at later."""

    @property
    def comparable(self) -> Pick | None:
        """The chosen image with scores that compare with those of the first draw."""
        return self.quick or self.chosen


@dataclass(frozen=True, slots=True)
class JudgeSummary:
    """Means over prompts of one score of the held-out judge."""

    name: str
    """The score; "passed" is 0 or 1, and its means are pass rates."""
    prompts: int
    """Prompts with a usable score."""
    first: float
    """Mean of the first draws."""
    chosen: float
    """Mean of the chosen images."""
    best: float
    """Mean of the best images of each prompt by this score: what a perfect verifier would reach."""
    closed: float
    """(chosen - first) / (best - first); NaN if there is no distance to close."""
    closed_interval: Interval
    """95 % interval of `closed`; NaN with fewer than ten prompts."""

    @property
    def passes(self) -> bool:
        """True if the means are pass rates."""
        return self.name == "passed"


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """What a run achieved on all its prompts."""

    prompts: tuple[PromptSummary, ...]
    candidates: int
    """Sum over prompts."""
    failed: int
    """Trials with an error."""
    objective_first: float
    """Mean objective of the first draws; NaN without a usable prompt."""
    objective_chosen: float
    """Mean objective of the chosen images of the same prompts, of the same detail."""
    ties: int
    """Prompts with a tie for the best objective."""
    judge: JudgeSummary | None
    """None if the run had no judge, or none of its scores is usable."""


def first_draw(trials: Sequence[Trial]) -> Trial | None:
    """Returns the first finished image of a prompt's trials, what a run without a search gives."""
    candidates = (t for t in trials if not isinstance(t.proposal, VERIFIES_ONLY))
    return next((t for t in candidates if t.progress >= 1 and t.image), None)


def summarise_prompt(prompt: Prompt, trials: Sequence[Trial]) -> PromptSummary:
    """Summarises one prompt from all its trials, in the order of the log."""
    choice, first = choose(trials), first_draw(trials)
    quick = None if choice.trial is None else before_look(choice.trial, trials)
    best: dict[str, float] = {}
    for trial in choice.order if first is None else (first, *choice.order):
        for name, value in trial.judge.items():
            if math.isfinite(value):
                best[name] = max(value, best.get(name, value))
    top = choice.trial.objective if choice.trial else math.nan
    looked = choice.trial is not None and _is_look(choice.trial)
    return PromptSummary(
        prompt=prompt,
        first=None if first is None else Pick.of(first),
        chosen=None if choice.trial is None else Pick.of(choice.trial),
        candidates=sum(not isinstance(t.proposal, VERIFIES_ONLY) for t in trials),
        failed=sum(bool(t.error) for t in trials),
        tied=sum(t.objective == top and _is_look(t) == looked for t in choice.order) > 1,
        best=best,
        quick=None if quick is None or quick is choice.trial else Pick.of(quick),
    )


def _is_look(trial: Trial) -> bool:
    return isinstance(trial.proposal, Look)


def summarise(rows: Sequence[PromptSummary]) -> Summary:
    """Summarises a run from its prompts."""
    pairs = [(row.first, row.comparable) for row in rows]
    usable = [(first, chosen) for first, chosen in pairs if first and chosen and not first.error]
    return Summary(
        prompts=tuple(rows),
        candidates=sum(row.candidates for row in rows),
        failed=sum(row.failed for row in rows),
        objective_first=_mean_or_nan([first.objective for first, _ in usable]),
        objective_chosen=_mean_or_nan([chosen.objective for _, chosen in usable]),
        ties=sum(row.tied for row in rows),
        judge=_summarise_judge(rows),
    )


def wilson(successes: float, count: int) -> Interval:
    """Returns Wilson's 95 % interval of the rate successes / count."""
    # The 97.5 % quantile of the standard normal distribution.
    z, p = 1.959964, successes / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def _mean_or_nan(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _summarise_judge(rows: Sequence[PromptSummary]) -> JudgeSummary | None:
    names = [name for row in rows if row.chosen for name in row.chosen.judge]
    if not names:
        return None
    name = "passed" if "passed" in names else names[0]
    scores = np.array([_judge_scores(row, name) for row in rows])
    scores = scores[np.isfinite(scores).all(axis=1)]
    if not len(scores):
        return None
    first, chosen, best = scores.mean(axis=0).tolist()
    interval = _bootstrap_closed(scores)
    return JudgeSummary(name, len(scores), first, chosen, best, _share_closed(scores), interval)


def _judge_scores(row: PromptSummary, name: str) -> tuple[float, float, float]:
    """Returns the judge's score of the first draw, of the chosen image and of the best."""
    first = row.first.judge.get(name, math.nan) if row.first else math.nan
    # A prompt without a usable image counts as not passed.
    chosen = row.chosen.judge.get(name, math.nan) if row.chosen else 0.0
    return first, chosen, row.best.get(name, math.nan)


def _share_closed(scores: NDArray[np.float64]) -> float:
    """Returns (chosen - first) / (best - first) of the column means; NaN without a distance.

    Args:
        scores: (prompts, 3): first, chosen, best.
    """
    first, chosen, best = scores.mean(axis=0).tolist()
    return float((chosen - first) / (best - first)) if best > first else math.nan


def _bootstrap_closed(scores: NDArray[np.float64], resamples: int = 2000) -> Interval:
    """Returns the 95 % percentile interval of `_share_closed` over resampled prompts.

    NaN where there are too few, or no distance to close.
    """
    if len(scores) < LEAST_PROMPTS:
        return math.nan, math.nan
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(scores), (resamples, len(scores)))
    shares = [share for pick in picks if not math.isnan(share := _share_closed(scores[pick]))]
    if not shares:
        return math.nan, math.nan
    low, high = np.percentile(shares, [2.5, 97.5]).tolist()
    return low, high
