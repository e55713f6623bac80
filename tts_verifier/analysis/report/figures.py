"""Charts and tables over one run, and between runs that share prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from tts_verifier.analysis.charts import Chart, Point, Series, bars, lines
from tts_verifier.choice.objective import Pick, choose
from tts_verifier.choice.summary import PromptSummary, Summary
from tts_verifier.types import Cost, Look, Trial, kind_of
from tts_verifier.types.score_names import written_scores

_GRID = 40


@dataclass(frozen=True, slots=True)
class Step:
    """Where the search for a prompt stood after a trial: spent so far, and the best so far."""

    candidates: int
    cost: Cost
    best: Trial


AXES: Mapping[str, Callable[[Step], float]] = {
    "candidates": lambda s: s.candidates,
    "network evaluations": lambda s: s.cost.network_evaluations,
    "seconds": lambda s: s.cost.seconds,
}


def steps(trials: Sequence[Trial]) -> list[Step]:
    """Returns one prompt's steps from its first usable picture on."""
    found: list[Step] = []
    seen: list[Trial] = []
    best, count, cost = None, 0, Cost()
    for trial in trials:
        seen.append(trial)
        count += not isinstance(trial.proposal, Look)
        cost += trial.cost
        if isinstance(trial.proposal, Look):
            best = choose(seen).trial
        elif trial.finished and (best is None or trial.objective > best.objective):
            best = None if math.isnan(trial.objective) else trial
        if best is not None:
            found.append(Step(count, cost, best))
    return found


def progress(
    name: str, prompts: Sequence[Sequence[Step]], axis: str, value: Callable[[Trial], float]
) -> Series:
    """Returns a value of the best so far against what was spent a prompt, mean over prompts."""
    x = AXES[axis]
    curves = []
    for one in prompts:
        if one and all(math.isfinite(value(s.best)) for s in one):
            curves.append(([x(s) for s in one], [value(s.best) for s in one]))
    if not curves:
        return Series(name, ())
    low, high = max(xs[0] for xs, _ in curves), max(xs[-1] for xs, _ in curves)
    grid = np.linspace(low, high, _GRID) if high > low else np.array([low], float)
    if axis == "candidates":
        grid = np.unique(np.rint(grid))
    rows = [np.array(ys)[np.searchsorted(xs, grid, "right") - 1] for xs, ys in curves]
    return Series(name, list(zip(grid.tolist(), np.mean(rows, axis=0).tolist(), strict=True)))


def distributions(trials: Sequence[Trial], summary: Summary) -> list[str]:
    """Returns a histogram of the objective and of every score: all pictures, and the chosen."""
    chosen = [row.chosen for row in summary.prompts if row.chosen]
    scores = dict.fromkeys(name for t in trials for name in written_scores(t.scores))
    judge = dict.fromkeys(name for t in trials for name in t.judge)
    reads: dict[str, Callable[[Trial | Pick], float]] = {"objective": lambda t: t.objective}
    reads |= {n: lambda t, n=n: t.scores.get(n, math.nan) for n in scores}  # type: ignore[misc]
    reads |= {f"judge: {n}": lambda t, n=n: t.judge.get(n, math.nan) for n in judge}  # type: ignore[misc]

    def points(of: Sequence[Trial | Pick], read: Callable[[Trial | Pick], float]) -> list[Point]:
        return [(read(t), 0.0) for t in of]

    return [
        bars(Chart(name, "", [
            Series("all", points(trials, read)), Series("chosen", points(chosen, read))
        ]))
        for name, read in reads.items()
    ]  # fmt: skip


def costs(trials: Sequence[Trial]) -> list[tuple[str, int, Cost]]:
    """Returns (kind of proposal, trials, cost) for every kind, and for all."""
    table: dict[str, tuple[int, Cost]] = {}
    for trial in trials:
        for name in (kind_of(trial.proposal), "all"):
            count, cost = table.get(name, (0, Cost()))
            table[name] = (count + 1, cost + trial.cost)
    everything = table.pop("all", (0, Cost()))
    return [*((name, *row) for name, row in table.items()), ("all", *everything)]


@dataclass(frozen=True, slots=True)
class Category:
    """Prompts of one category: how often the choice beat the first draw, and means of both."""

    name: str
    prompts: int
    wins: int
    losses: int
    objective: tuple[float, float]
    judge: tuple[float, float]


def categories(summary: Summary, judge: str | None) -> list[Category]:
    """Returns the prompts by category, in the order of the run; empty if none has one."""
    groups: dict[str, list[PromptSummary]] = {}
    for row in summary.prompts:
        groups.setdefault(row.prompt.category, []).append(row)
    if set(groups) <= {""}:
        return []
    return [_category(name or "none", rows, judge) for name, rows in groups.items()]


def _category(name: str, rows: Sequence[PromptSummary], judge: str | None) -> Category:
    pairs = [(row.first, row.chosen) for row in rows if row.first and row.chosen]
    gains = [chosen.objective - first.objective for first, chosen in pairs]

    def means(read: Callable[[Pick], float]) -> tuple[float, float]:
        both = [(read(first), read(chosen)) for first, chosen in pairs]
        both = [pair for pair in both if all(map(math.isfinite, pair))]
        if not both:
            return math.nan, math.nan
        return fmean(first for first, _ in both), fmean(chosen for _, chosen in both)

    return Category(
        name=name,
        prompts=len(rows),
        wins=sum(gain > 0 for gain in gains),
        losses=sum(gain < 0 for gain in gains),
        objective=means(lambda t: t.objective),
        judge=means(lambda t: t.judge.get(judge or "", math.nan)),
    )


def main_judge(trials: Sequence[Trial]) -> str | None:
    """Returns the judge's score that a summary shows: whether it passed, or its first."""
    names = dict.fromkeys(name for t in trials for name in t.judge)
    return "passed" if "passed" in names else next(iter(names), None)


@dataclass(frozen=True, slots=True)
class Paired:
    """A run against another on the prompts of both: mean difference with its 95 % interval."""

    name: str
    prompts: int
    mean: float
    low: float
    high: float
    wins: int
    losses: int


def paired(name: str, here: Mapping[str, float], there: Mapping[str, float]) -> Paired:
    """Compares values by prompt text, `here` minus `there`; bootstrap over prompts."""
    both = [k for k, v in here.items() if math.isfinite(v + there.get(k, math.nan))]
    gains = np.array([here[k] - there[k] for k in both])
    if not both:
        return Paired(name, 0, math.nan, math.nan, math.nan, 0, 0)
    counts = np.random.default_rng(0).multinomial(
        len(gains), np.full(len(gains), 1 / len(gains)), 2000
    )
    low, high = np.percentile(counts @ gains / len(gains), [2.5, 97.5]).tolist()
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    return Paired(name, len(both), float(gains.mean()), low, high, wins, losses)


def progress_charts(runs: Mapping[str, Sequence[Sequence[Step]]], judge: str | None) -> list[str]:
    """Returns a chart an axis: the objective of the best so far, and the judge's word on it.

    One run has both in one chart; of several runs, each measure has a chart with all of them.
    """
    reads: dict[str, Callable[[Trial], float]] = {"objective": lambda t: t.objective}
    if judge is not None:
        reads[f"judge, {judge}"] = lambda t: t.judge.get(judge, math.nan)
    charts = []
    if len(runs) == 1:
        prompts = next(iter(runs.values()))
        for axis in AXES:
            both = [progress(measure, prompts, axis, read) for measure, read in reads.items()]
            charts.append(lines(Chart("Best so far, mean over prompts", axis, both)))
        return charts
    for measure, read in reads.items():
        for axis in AXES:
            every = [progress(name, prompts, axis, read) for name, prompts in runs.items()]
            charts.append(lines(Chart(f"Best so far: {measure}", axis, every)))
    return charts
