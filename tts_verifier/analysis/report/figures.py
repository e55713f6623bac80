"""Charts and tables about one run, and between runs that share prompts."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from statistics import fmean

import numpy as np

from tts_verifier.analysis.expected_best import estimate
from tts_verifier.analysis.svg import Chart, Point, Series, histogram, line_chart
from tts_verifier.choice.objective import before_look, choose
from tts_verifier.choice.summary import PromptSummary, Summary
from tts_verifier.types import VERIFIES_ONLY, Cost, Pick, Trial, kind_of
from tts_verifier.types.score_names import written_scores

_GRID_POINTS = 40
"""Points of a progress curve."""


@dataclass(frozen=True, slots=True)
class SearchState:
    """The state of a prompt's search after a trial."""

    candidates: int
    """So far."""
    cost: Cost
    """So far."""
    best: Pick
    """So far."""


AXES: Mapping[str, Callable[[SearchState], float]] = {
    "candidates": lambda s: s.candidates,
    "network evaluations": lambda s: s.cost.network_evaluations,
    "seconds": lambda s: s.cost.seconds,
}


def search_states(trials: Sequence[Trial]) -> list[SearchState]:
    """Returns the states of one prompt's search, from its first usable image on."""
    states: list[SearchState] = []
    history: list[Trial] = []
    best, count, cost, looked = None, 0, Cost(), False
    for trial in trials:
        history.append(trial)
        count += not isinstance(trial.proposal, VERIFIES_ONLY)
        cost += trial.cost
        looked = looked or isinstance(trial.proposal, VERIFIES_ONLY)
        if looked:
            # The fuller verdict may take the first place from an image. Its own numbers do not
            # compare with those before.
            chosen = choose(history).trial
            best = None if chosen is None else before_look(chosen, history)
        elif trial.finished and (best is None or trial.objective > best.objective):
            best = None if math.isnan(trial.objective) else trial
        if best is not None:
            # A trial would keep its reply and maps in memory, for every state of a long run.
            if not states or states[-1].best.id != best.id:
                pick = Pick.of(best)
            states.append(SearchState(count, cost, pick))
    return states


def progress_series(
    name: str, prompts: Sequence[Sequence[SearchState]], axis: str, value: Callable[[Pick], float]
) -> Series:
    """Returns a value of the best so far against the cost per prompt, as mean over prompts.

    Args:
        name: of the series.
        prompts: the states of each prompt; those with an unknown value are left out.
        axis: a key of `AXES`.
        value: what is averaged.
    """
    x = AXES[axis]
    curves = []
    for states in prompts:
        if states and all(math.isfinite(value(s.best)) for s in states):
            curves.append(([x(s) for s in states], [value(s.best) for s in states]))
    if not curves:
        return Series(name, ())
    # From where all prompts have an image; a search that ended keeps its last value.
    low, high = max(xs[0] for xs, _ in curves), max(xs[-1] for xs, _ in curves)
    grid = np.linspace(low, high, _GRID_POINTS) if high > low else np.array([low], float)
    # There is no half candidate.
    if axis == "candidates":
        grid = np.unique(np.rint(grid))
    rows = [np.array(ys)[np.searchsorted(xs, grid, "right") - 1] for xs, ys in curves]
    return Series(name, list(zip(grid.tolist(), np.mean(rows, axis=0).tolist(), strict=True)))


class RunFigures:
    """Collects the scores and the costs of a run, prompt by prompt.

    Not for sharing between threads.
    """

    def __init__(self) -> None:
        self.scores: dict[str, array[float]] = {"objective": array("d")}
        """Score -> its finite values, one per image; a judge's scores come last."""
        self.costs: dict[str, tuple[int, Cost]] = {}
        """Kind of proposal -> trials, cost."""
        self._judge: dict[str, array[float]] = {}

    def add(self, trials: Sequence[Trial]) -> None:
        """Adds the trials of a prompt."""
        for trial in trials:
            if isinstance(trial.proposal, VERIFIES_ONLY):
                # Its image is counted already, and its scores are on another scale.
                continue
            _add_values(self.scores, {"objective": trial.objective})
            _add_values(self.scores, written_scores(trial.scores))
            _add_values(self._judge, trial.judge)
        for name, count, cost in cost_table(trials):
            known, spent = self.costs.get(name, (0, Cost()))
            self.costs[name] = (known + count, spent + cost)

    def histograms(self, summary: Summary) -> list[str]:
        """Returns histograms of the objective and every score, of all images and of the chosen."""
        chosen = [pick for row in summary.prompts if (pick := row.comparable)]

        def chart(title: str, values: array[float], read: Callable[[Pick], float]) -> str:
            points: list[Point] = [(value, 0.0) for value in values]
            picked: list[Point] = [(read(pick), 0.0) for pick in chosen]
            series = [Series("all candidates", points), Series("chosen", picked)]
            return histogram(Chart(title, "score", series, y="share of images"))

        charts = []
        for name, values in self.scores.items():
            read = partial(_score_of, name)
            charts.append(chart(name, values, attrgetter(name) if name == "objective" else read))
        for name, values in self._judge.items():
            charts.append(chart(f"judge: {name}", values, partial(_judge_of, name)))
        return charts

    def cost_rows(self) -> list[tuple[str, int, Cost]]:
        """Returns the costs as `cost_table` does."""
        everything = self.costs.get("all", (0, Cost()))
        kinds = [(name, *row) for name, row in self.costs.items() if name != "all"]
        return [*kinds, ("all", *everything)]


def _add_values(columns: dict[str, array[float]], values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if name not in columns:
            columns[name] = array("d")
        if math.isfinite(value):
            columns[name].append(value)


def _score_of(name: str, pick: Pick) -> float:
    return pick.scores.get(name, math.nan)


def _judge_of(name: str, pick: Pick) -> float:
    return pick.judge.get(name, math.nan)


def cost_table(trials: Sequence[Trial]) -> list[tuple[str, int, Cost]]:
    """Returns (kind of proposal, trials, cost) for every kind, and for all."""
    table: dict[str, tuple[int, Cost]] = {}
    for trial in trials:
        for name in (kind_of(trial.proposal), "all"):
            count, cost = table.get(name, (0, Cost()))
            table[name] = (count + 1, cost + trial.cost)
    everything = table.pop("all", (0, Cost()))
    return [*((name, *row) for name, row in table.items()), ("all", *everything)]


@dataclass(frozen=True, slots=True)
class CategoryFigures:
    """The prompts of one category."""

    name: str
    prompts: int
    wins: int
    """Prompts whose chosen image has a higher objective than the first draw."""
    losses: int
    """Prompts whose chosen image has a lower objective than the first draw."""
    objective: tuple[float, float]
    """Means of the first draws and of the chosen images."""
    judge: tuple[float, float]
    """The same for the judge's main score; NaN without a judge."""


def categories(summary: Summary, judge: str | None) -> list[CategoryFigures]:
    """Returns the prompts by category, in the order of the run; empty if none has one."""
    groups: dict[str, list[PromptSummary]] = {}
    for row in summary.prompts:
        groups.setdefault(row.prompt.category, []).append(row)
    if set(groups) <= {""}:
        return []
    return [_category(name or "none", rows, judge) for name, rows in groups.items()]


def _category(name: str, rows: Sequence[PromptSummary], judge: str | None) -> CategoryFigures:
    both = [(row.first, row.comparable) for row in rows]
    pairs = [(first, chosen) for first, chosen in both if first and chosen]
    gains = [chosen.objective - first.objective for first, chosen in pairs]

    def means(read: Callable[[Pick], float]) -> tuple[float, float]:
        both = [(read(first), read(chosen)) for first, chosen in pairs]
        both = [pair for pair in both if all(map(math.isfinite, pair))]
        if not both:
            return math.nan, math.nan
        return fmean(first for first, _ in both), fmean(chosen for _, chosen in both)

    return CategoryFigures(
        name=name,
        prompts=len(rows),
        wins=sum(gain > 0 for gain in gains),
        losses=sum(gain < 0 for gain in gains),
        objective=means(lambda t: t.objective),
        judge=means(lambda t: t.judge.get(judge or "", math.nan)),
    )


def main_judge_score(names: Collection[str]) -> str | None:
    """Returns the judge's score that a summary shows: "passed", or the first of its names."""
    return "passed" if "passed" in names else next(iter(names), None)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The difference between two runs on the prompts of both."""

    name: str
    """The measure."""
    prompts: int
    """Prompts with a value in both runs."""
    mean: float
    low: float
    """Lower end of the 95 % interval of the mean."""
    high: float
    """Upper end of the interval."""
    wins: int
    losses: int


def paired_difference(
    name: str, here: Mapping[str, float], there: Mapping[str, float]
) -> PairedDifference:
    """Compares two runs: `here` minus `there`, with a bootstrap over prompts.

    Args:
        name: the measure.
        here: prompt text -> value.
        there: the same of the other run.
    """
    common = [k for k, v in here.items() if math.isfinite(v + there.get(k, math.nan))]
    gains = np.array([here[k] - there[k] for k in common])
    (mean,) = estimate(gains.reshape(-1, 1))
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    return PairedDifference(name, len(common), mean.mean, mean.low, mean.high, wins, losses)


def progress_charts(
    runs: Mapping[str, Sequence[Sequence[SearchState]]], judge: str | None
) -> list[str]:
    """Returns charts of the best so far: its objective, and the judge's score of it.

    There is a chart for each measure and axis: measures on one scale would hide each other. The
    network evaluations of one run alone would repeat its candidates.

    Args:
        runs: name -> the states of each prompt.
        judge: the judge's main score; None = no judge.
    """
    reads: dict[str, Callable[[Pick], float]] = {"objective": lambda t: t.objective}
    if judge is not None:
        reads[f"judge ({judge})"] = lambda t: t.judge.get(judge, math.nan)
    charts = []
    axes = AXES if len(runs) > 1 else ("candidates", "seconds")
    for measure, read in reads.items():
        for axis in axes:
            series = [progress_series(name, prompts, axis, read) for name, prompts in runs.items()]
            title = f"Best so far: {measure} by {axis}"
            charts.append(line_chart(Chart(title, f"{axis} per prompt", series, y="mean")))
    return charts
