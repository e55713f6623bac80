"""What fewer candidates, or stopping early, would have given: from one log, with no model.

Figures are exact expectations over all subsets of the draws that are there (`expectations`);
what pruning by previews would have given needs a log that has previews of all (`pruning`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tts_verifier.analysis.charts import Chart, Series, alone, lines
from tts_verifier.analysis.expected_best import (
    Array,
    Estimate,
    estimate,
    expected_best,
    expected_stop,
    misses,
)
from tts_verifier.analysis.pruning import Chain, Pruning, chains, prunings
from tts_verifier.errors import InputError, RunError
from tts_verifier.log import read_header, read_trials
from tts_verifier.types import Trial

QUANTILES: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Where the thresholds of adaptive stopping lie among all objectives."""


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
    draws from noise of their own, nor previews of one. `evaluations`, `seconds`: of a draw and
    its verdicts, mean. `pruning`: empty where not all draws have previews.
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
    pruning: tuple[Pruning, ...]


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
    pools: dict[str, list[Chain]] = {}
    for chain in chains(trials):
        pools.setdefault(chain.last.prompt.id, []).append(chain)
    if not pools:
        raise InputError(
            "A replay needs whole draws, each from noise of its own, as best_of_n makes them; "
            f"this log has none among its {len(trials)} trials. Replay the log of a best_of_n run, "
            "or of successive_halving with keep: 1."
        )
    draws = [c for pool in pools.values() for c in pool]
    count = min(map(len, pools.values()))
    goals = [np.array([c.objective for c in pool]) for pool in pools.values()]
    names = dict.fromkeys(name for c in draws for name in c.last.judge)
    measures = {"objective": goals}
    for name in names:
        columns = [np.array([c.last.judge.get(name, math.nan) for c in p]) for p in pools.values()]
        measures[f"judge_{name}"] = columns
    return Replay(
        prompts=len(pools),
        candidates=count,
        failed=sum(int(np.isnan(g).sum()) for g in goals),
        tied=sum(_tied(g) for g in goals),
        tied_best=sum(int((g == np.nanmax(g)).sum() > 1) for g in goals if not np.isnan(g).all()),
        left_out=len(trials) - sum(len(c.trials) for c in draws),
        evaluations=float(np.mean([c.evaluations for c in draws])),
        seconds=float(np.mean([c.seconds for c in draws])),
        curves=tuple(_curve(n, goals, values, count) for n, values in measures.items()),
        stopping=tuple(_stopping(t, goals, measures, count) for t in _thresholds(goals)),
        pruning=prunings([*pools.values()], measures),
    )


# -- over prompts ---------------------------------------------------------------------------


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
    return Curve(name, len(rows), tuple(estimate(table)))


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
        values[name] = estimate(np.array(rows).reshape(-1, 1))[0]
    return Stopping(threshold, estimate(stops.reshape(-1, 1))[0], values)


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
    if done.pruning:
        cuts = [["preview at", "kept", "agreement", "evaluations", "seconds", *names]]
        for p in done.pruning:
            cost = [f"{p.agreement:.2f}", f"{p.evaluations:.0f}", f"{p.seconds:.2f}"]
            values = [_shown(p.values[name]) for name in names]
            cuts.append([f"{p.stop:.0%}", f"{p.share:.3g}", *cost, *values])
        words = "all drawn up to a preview, the best share of them finished"
        text += ["", words, *_aligned(cuts)]
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
