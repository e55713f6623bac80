"""What fewer candidates, or stopping early, would have given: from one log, with no model.

The draws of a prompt are exchangeable, so the best of n is the best of n among its N without
replacement. A value v_g shared by m draws, with a better ones, is the best of n with
probability [C(N - a, n) - C(N - a - m, n)] / C(N, n): the figures are exact expectations
over all subsets, not a simulation. Intervals are 95 % percentile bootstraps over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tts_verifier.charts import Chart, Series, alone, lines
from tts_verifier.errors import InputError, RunError
from tts_verifier.log import read_header, read_trials
from tts_verifier.types import Draw, Trial

Array = NDArray[np.float64]

QUANTILES: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Where the thresholds of adaptive stopping lie among all objectives."""
_RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts with its 95 % interval; NaN without a prompt."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One measure of the best of n, for n = 1, 2, …; `prompts` of them have it."""

    name: str
    prompts: int
    values: tuple[Estimate, ...]


@dataclass(frozen=True, slots=True)
class Stopping:
    """Drawing one by one until the objective reaches `threshold`, or n_max are drawn."""

    threshold: float
    candidates: Estimate
    values: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Replay:
    """A replayed log.

    `candidates`: the largest n, which is what every prompt has. `failed`: draws without a
    usable objective. `tied`: draws whose objective another one of their prompt has;
    `tied_best`: prompts whose best objective is shared. `left_out`: trials that are no whole
    draws from noise of their own. `evaluations`, `seconds`: of a draw and its verdict, mean.
    """

    prompts: int
    candidates: int
    failed: int
    tied: int
    tied_best: int
    left_out: int
    evaluations: float
    seconds: float
    curves: tuple[Curve, ...]
    stopping: tuple[Stopping, ...]


def replay_log(folder: Path) -> Replay:
    """Replays a run folder.

    Raises:
        RunError: it is not a run folder, or a file of it is damaged.
        InputError: it holds no whole draws.
    """
    read_header(folder)
    return replay(read_trials(folder))


def replay(trials: Sequence[Trial]) -> Replay:
    """Returns what best-of-n and adaptive stopping would have given on these draws.

    Raises:
        InputError: there are no whole draws.
    """
    pools: dict[str, list[Trial]] = {}
    for trial in trials:
        if _whole(trial):
            pools.setdefault(trial.prompt.id, []).append(trial)
    if not pools:
        raise InputError(
            "A replay needs whole draws, each from noise of its own, as best_of_n makes them; "
            f"this log has none among its {len(trials)} trials. Replay the log of a best_of_n run."
        )
    draws = [t for pool in pools.values() for t in pool]
    count = min(map(len, pools.values()))
    goals = [np.array([_objective(t) for t in pool]) for pool in pools.values()]
    names = dict.fromkeys(name for t in draws for name in t.judge)
    measures = {"objective": goals}
    for name in names:
        columns = [np.array([t.judge.get(name, math.nan) for t in p]) for p in pools.values()]
        measures[f"judge_{name}"] = columns
    return Replay(
        prompts=len(pools),
        candidates=count,
        failed=sum(int(np.isnan(g).sum()) for g in goals),
        tied=sum(_tied(g) for g in goals),
        tied_best=sum(int((g == np.nanmax(g)).sum() > 1) for g in goals if not np.isnan(g).all()),
        left_out=len(trials) - len(draws),
        evaluations=float(np.mean([t.cost.network_evaluations for t in draws])),
        seconds=float(np.mean([t.cost.draw_seconds + t.cost.judge_seconds for t in draws])),
        curves=tuple(_curve(n, goals, values, count) for n, values in measures.items()),
        stopping=tuple(_stopping(t, goals, measures, count) for t in _thresholds(goals)),
    )


# -- exact expectations for one prompt ------------------------------------------------------


@lru_cache(maxsize=4096)
def misses(total: int, hits: int) -> Array:
    """Returns for n = 0 … total the chance that n of `total` draws hold none of `hits`."""
    i = np.arange(total)
    chance = np.concatenate([[1.0], np.cumprod(np.maximum(total - hits - i, 0) / (total - i))])
    # The cache hands out the same array again.
    chance.flags.writeable = False
    return chance


def expected_best(objective: Array, values: Array) -> Array:
    """Returns for n = 1 … N the expected value of the draw with the best objective.

    Args:
        objective: (N,), NaN for a draw that cannot be chosen.
        values: (N,), of the draw that is chosen; draws of equal objective share the choice.

    Returns:
        (N,). A subset that has nothing to choose adds 0; `misses` gives its chance.
    """
    total, better = len(objective), 0
    expected = np.zeros(total)
    for goal in np.unique(objective[~np.isnan(objective)])[::-1]:
        group = objective == goal
        size = int(group.sum())
        chance = misses(total, better) - misses(total, better + size)
        expected += chance[1:] * values[group].mean()
        better += size
    return expected


def expected_stop(objective: Array, values: Array, threshold: float, limit: int) -> Array:
    """Returns (draws, value) expected of drawing until one reaches `threshold`.

    The draws come in random order without replacement, at most `limit` of them; then the best
    is taken. As in `expected_best`, nothing to choose adds 0 to the value.
    """
    hits = objective >= threshold
    none = misses(len(objective), int(hits.sum()))
    value = (1 - none[limit]) * values[hits].mean() if hits.any() else 0.0
    rest = int((~hits).sum())
    if rest >= limit:
        value += none[limit] * expected_best(objective[~hits], values[~hits])[limit - 1]
    return np.array([none[:limit].sum(), value])


# -- over prompts ---------------------------------------------------------------------------


def _whole(trial: Trial) -> bool:
    draw = trial.proposal
    # Noise near a parent's depends on the history: such draws are not exchangeable.
    return isinstance(draw, Draw) and draw.until >= 1 and draw.noise is None


def _objective(trial: Trial) -> float:
    return trial.objective if trial.finished else math.nan


def _tied(goals: Array) -> int:
    _, counts = np.unique(goals[~np.isnan(goals)], return_counts=True)
    return int(counts[counts > 1].sum())


def _thresholds(goals: Sequence[Array]) -> list[float]:
    every = np.concatenate(goals)
    every = every[~np.isnan(every)]
    if not len(every):
        return []
    return [float(q) for q in np.unique(np.quantile(every, QUANTILES, method="higher"))]


def _usable(name: str, goals: Array, values: Array) -> bool:
    """Tells whether a prompt has a measure: an objective, or the judge's word on every draw.

    A prompt without anything to choose counts as 0 for the judge: it was not passed.
    """
    if name == "objective":
        return not np.isnan(goals).all()
    return bool(np.isfinite(values[~np.isnan(goals)]).all())


def _curve(name: str, goals: Sequence[Array], values: Sequence[Array], count: int) -> Curve:
    rows = []
    for g, v in zip(goals, values, strict=True):
        if _usable(name, g, v):
            row = expected_best(g, v)
            if name == "objective":
                row /= 1 - misses(len(g), int((~np.isnan(g)).sum()))[1:]
            rows.append(row[:count])
    table = np.array(rows) if rows else np.empty((0, count))
    return Curve(name, len(rows), tuple(_estimate(table)))


def _stopping(
    threshold: float, goals: Sequence[Array], measures: Mapping[str, Sequence[Array]], count: int
) -> Stopping:
    values, stops = {}, np.array([expected_stop(g, g, threshold, count)[0] for g in goals])
    for name, columns in measures.items():
        rows = []
        for g, v in zip(goals, columns, strict=True):
            if _usable(name, g, v):
                _, value = expected_stop(g, v, threshold, count)
                if name == "objective":
                    value /= 1 - misses(len(g), int((~np.isnan(g)).sum()))[count]
                rows.append(value)
        values[name] = _estimate(np.array(rows).reshape(-1, 1))[0]
    return Stopping(threshold, _estimate(stops.reshape(-1, 1))[0], values)


def _estimate(table: Array) -> list[Estimate]:
    """Returns an estimate for every column of a (prompts, n) table."""
    if not len(table):
        return [Estimate(math.nan, math.nan, math.nan)] * table.shape[1]
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), _RESAMPLES)
    low, high = np.percentile(counts @ table / len(table), [2.5, 97.5], axis=0)
    mean = table.mean(axis=0)
    return [Estimate(*map(float, row)) for row in zip(mean, low, high, strict=True)]


# -- to be looked at ------------------------------------------------------------------------


def as_text(done: Replay) -> str:
    """Returns the tables of a replay as the terminal shows them."""
    head = f"{done.prompts} prompts, the best of 1 to {done.candidates} draws each"
    notes = [head + (f", {done.failed} draws failed" if done.failed else "")]
    if done.left_out:
        notes.append(f"left out: {done.left_out} trials that are no whole draws of their own")
    notes.append(
        f"ties: {done.tied} draws share their objective with another of the prompt, "
        f"{done.tied_best} prompts share the best; the choice is shared evenly among them"
    )
    short = [f"{c.name} from {c.prompts}" for c in done.curves if c.prompts < done.prompts]
    if short:
        notes.append(f"prompts with a value for every usable draw: {', '.join(short)}")
    names = [c.name for c in done.curves]
    table = [["n", "evaluations", "seconds", *names]]
    for n in range(1, done.candidates + 1):
        cost = [f"{n * done.evaluations:.0f}", f"{n * done.seconds:.2f}"]
        table.append([str(n), *cost, *(_shown(c.values[n - 1]) for c in done.curves)])
    stops = [["stop at", "draws", "evaluations", "seconds", *names]]
    for s in done.stopping:
        mean = s.candidates.mean
        cost = [f"{mean * done.evaluations:.0f}", f"{mean * done.seconds:.2f}"]
        values = [_shown(s.values[name]) for name in names]
        stops.append([f"{s.threshold:.3f}", f"{mean:.2f}", *cost, *values])
    text = [*notes, "", "best of n, mean over prompts [95 % bootstrap]", *_aligned(table)]
    if done.stopping:
        words = "one by one until the objective reaches a threshold, the thresholds from this log"
        text += ["", words, *_aligned(stops)]
    return "\n".join(text)


def charts(done: Replay) -> list[str]:
    """Returns one chart a measure: the best of n, and where adaptive stopping ends."""
    shown = []
    for c in done.curves:
        curve = [(float(n), e.mean) for n, e in enumerate(c.values, 1)]
        band = [(e.low, e.high) for e in c.values]
        dots = [(s.candidates.mean, s.values[c.name].mean) for s in done.stopping]
        series = [Series("best of n", curve, band), Series("stop early", dots, dots=True)]
        shown.append(lines(Chart(f"Expected {c.name}", "draws", series)))
    return shown


def write_plot(done: Replay, path: Path) -> None:
    """Writes the charts as one SVG file.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        path.write_text(alone(charts(done), "Expected best of n"), "utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}. Give another with --plot.") from error


def _shown(value: Estimate) -> str:
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
