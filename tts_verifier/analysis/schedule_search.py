"""Which schedule of dropping draws by their previews would have paid, from one log.

A schedule says how many draws there are and how many of them go on after each preview. The log of
`successive_halving` with `keep: 1` has the outcome of every schedule, so all those are tried whose
numbers are the draws of a prompt halved again and again. Many schedules on few prompts would find a
good one by luck. Therefore one half of the prompts (the 1st, 3rd, …) picks the schedules, and their
figures are those of the other half.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Final

import numpy as np

from tts_verifier.analysis.expected_best import Array, Estimate, Places, estimate, expected_best
from tts_verifier.analysis.pruning_outcomes import WholeDraw, common_stops
from tts_verifier.choice.objective import order

FEWEST_PROMPTS: Final = 8
"""With fewer prompts than this, none are left to measure what the others picked."""

Schedule = tuple[int, ...]
"""Draws at the start, then those that go on after each preview."""


@dataclass(frozen=True, slots=True)
class ScheduleOutcome:
    """The outcome of a schedule, on prompts that did not pick it."""

    counts: Schedule
    """Draws, then how many of them go on after each stop; equal numbers = nothing is dropped."""
    stops: tuple[float, ...]
    """Fractions of the denoising steps of the previews."""
    evaluations: float
    """Network evaluations per prompt, mean."""
    seconds: float
    """Seconds per prompt, mean; without verdicts on previews that drop nothing."""
    value: Estimate
    """The measure of the chosen draw, mean over prompts."""
    gain: Estimate
    """By how much that exceeds the best of n at equal network evaluations, paired by prompt."""

    @property
    def keep(self) -> list[float]:
        """The same as the argument `keep` of `successive_halving`, whose `n` is `counts[0]`."""
        return [round(after / before, 6) for before, after in pairwise(self.counts)]


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """The draws of a prompt as tables."""

    previews: Array
    """(draws, stops), objectives."""
    goals: Array
    """(draws,), objectives of the finished draws."""
    values: Array
    """(draws,), what is measured."""
    evaluations: Array
    """(draws, stops + 1), from one stop to the next, and to the end."""
    generating: Array
    """The same in seconds."""
    verifying: Array
    """(draws, stops + 1), seconds of the verdicts there."""


def search_schedules(
    pools: Sequence[Sequence[WholeDraw]], values: Sequence[Array]
) -> tuple[ScheduleOutcome, ...]:
    """Returns the schedules that half of the prompts picks, by cost, measured on the other half.

    Picked are those that exceed every cheaper schedule.

    Args:
        pools: the draws of each prompt; those without a common preview make no schedule.
        values: of each prompt, the measure of its draws; NaN where it is not known.

    Returns:
        None of them if there are fewer than `FEWEST_PROMPTS` usable prompts or no previews.
    """
    stops = common_stops(pools)
    usable = [
        _pool_of(pool, row, stops)
        for pool, row in zip(pools, values, strict=True)
        if np.isfinite(row).all() and all(d.last.finished for d in pool)
    ]
    if not stops or len(usable) < FEWEST_PROMPTS:
        return ()
    most = min(len(pool.goals) for pool in usable)
    picking, measuring = usable[::2], usable[1::2]
    tried = {counts: _try(counts, picking) for counts in _schedules(most, len(stops))}
    costs = {counts: float(table[:, 0].mean()) for counts, table in tried.items()}
    found, highest = [], -math.inf
    for counts in sorted(tried, key=lambda c: (costs[c], c)):
        mean = float(tried[counts][:, 2].mean())
        if mean > highest + 1e-12:
            highest = mean
            found.append(_measured(counts, stops, measuring))
    return tuple(found)


def _schedules(most: int, stops: int) -> Iterator[Schedule]:
    """Yields schedules that drop something; their numbers do not rise."""
    sizes = [most >> i for i in range(most.bit_length())]
    for counts in product(sizes, repeat=stops + 1):
        falling = all(a >= b for a, b in pairwise(counts))
        if falling and counts[-1] < counts[0]:
            yield counts


def _pool_of(pool: Sequence[WholeDraw], values: Array, stops: Sequence[float]) -> _Pool:
    def by_stop(read: str) -> Array:
        cost = [{t.progress: getattr(t.cost, read) for t in draw.trials} for draw in pool]
        return np.array([[of.get(stop, 0.0) for stop in (*stops, 1.0)] for of in cost], float)

    # Trials at stops that not all prompts have belong to the way to the next one.
    evaluations = by_stop("network_evaluations")
    evaluations[:, -1] += [d.evaluations for d in pool] - evaluations.sum(axis=1)
    return _Pool(
        previews=np.array([[draw.preview(stop) for stop in stops] for draw in pool]),
        goals=np.array([draw.objective for draw in pool]),
        values=values,
        evaluations=evaluations,
        generating=by_stop("generate_seconds"),
        verifying=by_stop("verify_seconds"),
    )


def _try(counts: Schedule, pools: Sequence[_Pool]) -> Array:
    """Returns evaluations, seconds and the measure of a schedule for each prompt: (prompts, 3)."""
    return np.array([_outcome(counts, pool) for pool in pools])


def _outcome(counts: Schedule, pool: _Pool) -> Array:
    """Returns the mean over disjoint groups of draws, each as large as the schedule's start."""
    starts = range(0, len(pool.goals) - counts[0] + 1, counts[0])
    rows = [_outcome_of(counts, pool, np.arange(s, s + counts[0])) for s in starts]
    mean: Array = np.array(rows).mean(axis=0)
    return mean


def _outcome_of(counts: Schedule, pool: _Pool, alive: Places) -> tuple[float, float, float]:
    evaluations = seconds = 0.0
    for stop, count in enumerate(counts[1:]):
        evaluations += pool.evaluations[alive, stop].sum()
        seconds += pool.generating[alive, stop].sum()
        if count < len(alive):
            seconds += pool.verifying[alive, stop].sum()
            alive = alive[order(pool.previews[alive, stop].tolist())[:count]]
    evaluations += pool.evaluations[alive, -1].sum()
    seconds += (pool.generating + pool.verifying)[alive, -1].sum()
    best = alive[order(pool.goals[alive].tolist())[0]]
    return evaluations, seconds, float(pool.values[best])


def _measured(counts: Schedule, stops: Sequence[float], pools: Sequence[_Pool]) -> ScheduleOutcome:
    table = _try(counts, pools)
    evaluations, seconds, _ = table.mean(axis=0).tolist()
    whole = float(np.mean([pool.evaluations.sum(axis=1).mean() for pool in pools]))
    gaps = table[:, 2] - [_best_of(pool, evaluations / whole) for pool in pools]
    return ScheduleOutcome(
        counts,
        tuple(stops),
        evaluations,
        seconds,
        estimate(table[:, 2:])[0],
        estimate(gaps[:, None])[0],
    )


def _best_of(pool: _Pool, n: float) -> float:
    """Returns the measure of the best of n draws, interpolated between whole numbers."""
    curve = expected_best(pool.goals, pool.values)
    return float(np.interp(n, np.arange(1, len(curve) + 1), curve))


def measure_to_search(names: Iterable[str]) -> str:
    """Returns the measure that picks: the judge's pass or first score, without them the objective.

    Args:
        names: of the measures of a replay.
    """
    judged = [name for name in names if name.startswith("judge_")]
    return "judge_passed" if "judge_passed" in judged else (judged or ["objective"])[0]
