"""What fewer candidates, or stopping early, would have given: from one log, without a model.

The figures are exact expectations over all subsets of the recorded draws (`expected_best`). What
dropping candidates by their previews would have given needs a log with previews of all draws
(`pruning_outcomes`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from tts_verifier.analysis.expected_best import (
    Array,
    Estimate,
    by_prompt,
    estimate,
    expected_best,
    expected_stop,
    misses,
)
from tts_verifier.analysis.pruning_outcomes import (
    PruningOutcome,
    WholeDraw,
    pruning_outcomes,
    whole_draws,
)
from tts_verifier.analysis.schedule_search import (
    ScheduleOutcome,
    measure_to_search,
    search_schedules,
)
from tts_verifier.errors import InputError
from tts_verifier.log import read_header, read_outlines
from tts_verifier.types import VERIFIES_ONLY, Trial

QUANTILES: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""The thresholds of adaptive stopping are these quantiles of all objectives."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One measure of the best of n."""

    name: str
    """"objective", or "judge_" and the name of a judge's score."""
    prompts: int
    """Prompts that have the measure."""
    values: tuple[Estimate, ...]
    """For n = 1, 2, …"""


@dataclass(frozen=True, slots=True)
class StoppingOutcome:
    """The outcome of drawing one by one until an objective reaches a threshold."""

    threshold: float
    candidates: Estimate
    """Draws until then, or until the largest n."""
    values: Mapping[str, Estimate]
    """Measure -> its value for the chosen draw."""


@dataclass(frozen=True, slots=True)
class Replay:
    """A replayed log."""

    prompts: int
    candidates: int
    """The largest n: the number of draws that every prompt has."""
    failed: int
    """Draws without a usable objective."""
    tied: int
    """Draws that share their objective with another draw of their prompt."""
    tied_best: int
    """Prompts whose best objective is shared."""
    left_out: int
    """Trials that are neither independent whole draws nor previews of one, looks not counted."""
    looks: int
    """Looks at images and comparisons; the best of n is that of the scores before them."""
    evaluations: float
    """Network evaluations per draw, mean."""
    seconds: float
    """Seconds per draw and its verdicts, mean."""
    curves: tuple[Curve, ...]
    """One per measure."""
    stopping: tuple[StoppingOutcome, ...]
    """One per threshold."""
    pruning: tuple[PruningOutcome, ...]
    """One per preview and share; empty if some draws have no previews."""
    schedules: tuple[ScheduleOutcome, ...] = ()
    """The schedules that half of the prompts picks; empty without previews of all draws."""
    searched: str = "objective"
    """The measure by which schedules are picked."""


def replay_log(folder: Path) -> Replay:
    """Replays a run folder, finished or still running.

    Raises:
        RunError: it is not a run folder, or a file of it is damaged.
        InputError: it has no whole draws.
    """
    # Checks that it is a run folder; the trials alone would be an empty list.
    read_header(folder)
    return replay_trials(read_outlines(folder))


def replay_trials(trials: Sequence[Trial]) -> Replay:
    """Returns what best-of-n and adaptive stopping would have given on these draws.

    Raises:
        InputError: there are no whole draws.
    """
    pools: dict[str, list[WholeDraw]] = {}
    for draw in whole_draws(trials):
        pools.setdefault(draw.last.prompt.id, []).append(draw)
    if not pools:
        raise InputError(
            "A replay needs whole draws, each from noise of its own, as best_of_n makes them; "
            f"this log has none among its {len(trials)} trials. Replay the log of a best_of_n run, "
            "or of successive_halving with keep: 1."
        )
    draws = [d for pool in pools.values() for d in pool]
    count = min(map(len, pools.values()))
    looks = sum(isinstance(t.proposal, VERIFIES_ONLY) for t in trials)
    measures = _measure_values([*pools.values()])
    goals, searched = measures["objective"], measure_to_search(measures)
    usable = {name: _with_measure(name, goals, values) for name, values in measures.items()}
    return Replay(
        prompts=len(pools),
        candidates=count,
        failed=sum(int(np.isnan(g).sum()) for g in goals),
        tied=sum(_tied_draws(g) for g in goals),
        tied_best=sum(int((g == np.nanmax(g)).sum() > 1) for g in goals if not np.isnan(g).all()),
        left_out=len(trials) - looks - sum(len(d.trials) for d in draws),
        looks=looks,
        evaluations=float(np.mean([d.evaluations for d in draws])),
        seconds=float(np.mean([d.seconds for d in draws])),
        curves=tuple(_curve(n, *rows, count) for n, rows in usable.items()),
        stopping=tuple(_stopping(t, goals, usable, count) for t in _thresholds(goals)),
        pruning=pruning_outcomes([*pools.values()], measures),
        schedules=search_schedules([*pools.values()], measures[searched]),
        searched=searched,
    )


def _measure_values(pools: Sequence[Sequence[WholeDraw]]) -> dict[str, list[Array]]:
    """Returns by measure, for each prompt the values of its draws; the objective comes first."""
    measures = {"objective": [np.array([d.objective for d in pool]) for pool in pools]}
    for name in dict.fromkeys(name for pool in pools for d in pool for name in d.last.judge):
        measures[f"judge_{name}"] = [
            np.array([d.last.judge.get(name, math.nan) for d in pool]) for pool in pools
        ]
    return measures


def _tied_draws(goals: Array) -> int:
    _, counts = np.unique(goals[~np.isnan(goals)], return_counts=True)
    return int(counts[counts > 1].sum())


def _thresholds(goals: Sequence[Array]) -> list[float]:
    usable = np.concatenate(goals)
    usable = usable[~np.isnan(usable)]
    if not len(usable):
        return []
    return [float(q) for q in np.unique(np.quantile(usable, QUANTILES, method="higher"))]


def _with_measure(
    name: str, goals: Sequence[Array], values: Sequence[Array]
) -> tuple[list[Array], list[Array]]:
    """Returns objectives and values of the prompts that have a measure."""
    pairs = [(g, v) for g, v in zip(goals, values, strict=True) if _has_measure(name, g, v)]
    return [g for g, _ in pairs], [v for _, v in pairs]


def _has_measure(name: str, goals: Array, values: Array) -> bool:
    """Returns whether a prompt has an objective, or a judge's score for every usable draw.

    A prompt without a usable draw has a judge's score, 0: it counts as not passed.
    """
    if name == "objective":
        return not np.isnan(goals).all()
    return bool(np.isfinite(values[~np.isnan(goals)]).all())


def _chance_of_usable(goals: Array) -> Array:
    """Returns for n = 0 … N the chance that n draws contain a usable one, for each prompt.

    Expectations count a subset without a usable draw as 0. Dividing by this chance gives the mean
    over the other subsets.

    Args:
        goals: (prompts, N).
    """
    hits = (~np.isnan(goals)).sum(axis=1)
    return 1 - np.array([misses(goals.shape[1], int(one)) for one in hits])


def _curve(name: str, goals: Sequence[Array], values: Sequence[Array], count: int) -> Curve:
    def best(goals: Array, values: Array) -> Array:
        rows = expected_best(goals, values)
        if name == "objective":
            rows /= _chance_of_usable(goals)[:, 1:]
        return rows[:, :count]

    table = by_prompt(best, goals, values).reshape(-1, count)
    return Curve(name, len(goals), tuple(estimate(table)))


def _stopping(
    threshold: float,
    goals: Sequence[Array],
    measures: Mapping[str, tuple[Sequence[Array], Sequence[Array]]],
    count: int,
) -> StoppingOutcome:
    def stop(name: str, goals: Array, values: Array) -> Array:
        stops = expected_stop(goals, values, threshold, count)
        if name == "objective":
            stops[:, 1] /= _chance_of_usable(goals)[:, count]
        return stops

    draws = by_prompt(partial(stop, ""), goals, goals)[:, :1]
    values = {
        name: estimate(by_prompt(partial(stop, name), *rows).reshape(-1, 2)[:, 1:])[0]
        for name, rows in measures.items()
    }
    return StoppingOutcome(threshold, estimate(draws)[0], values)
