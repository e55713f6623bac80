"""What dropping candidates by their previews would have given, from a log that kept all of them.

`successive_halving` with `keep: 1` verifies previews of all draws and finishes every one of them.
Its log therefore has the result of every choice among the previews.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tts_verifier.analysis.expected_best import (
    Array,
    Estimate,
    by_prompt,
    estimate,
    expected_best,
)
from tts_verifier.choice.objective import order
from tts_verifier.choice.rank_correlation import spearman
from tts_verifier.types import Continue, Draw, Trial


@dataclass(frozen=True, slots=True)
class WholeDraw:
    """A draw from noise of its own."""

    trials: tuple[Trial, ...]
    """Its verified previews, if any, in order; then the finished trial."""

    @property
    def last(self) -> Trial:
        """The finished trial, or the one that failed."""
        return self.trials[-1]

    @property
    def objective(self) -> float:
        """The objective of the finished trial; NaN if it failed."""
        return self.last.objective if self.last.finished else math.nan

    @property
    def evaluations(self) -> float:
        """Network evaluations of all its trials."""
        return float(sum(t.cost.network_evaluations for t in self.trials))

    @property
    def seconds(self) -> float:
        """Seconds for generating and verifying all its trials."""
        return sum(t.cost.seconds for t in self.trials)

    def until(self, stop: float) -> WholeDraw:
        """Returns the part of it up to a preview."""
        return WholeDraw(tuple(t for t in self.trials if t.progress <= stop))

    def preview(self, stop: float) -> float:
        """Returns the objective of the preview at a stop; NaN if it failed."""
        return next((t.objective for t in self.trials if t.progress == stop), math.nan)


@dataclass(frozen=True, slots=True)
class PruningOutcome:
    """The outcome of finishing only the best draws by their previews at one stop."""

    stop: float
    """Fraction of the denoising steps of the previews."""
    share: float
    """Share of the draws that is finished."""
    agreement: float
    """Spearman correlation of previews and finished draws, mean over prompts."""
    evaluations: float
    """Network evaluations per prompt, mean."""
    seconds: float
    """Seconds per prompt, mean."""
    values: Mapping[str, Estimate]
    """Measure -> its value for the chosen draw, mean over prompts."""


def whole_draws(trials: Sequence[Trial]) -> list[WholeDraw]:
    """Returns the draws that are independent of each other, in the order of the log.

    Draws whose noise is near that of another depend on the history and are left out. So are the
    draws of a prompt with a preview that was continued twice or not at all, because those that
    were finished there are a selection.
    """
    trials_by_id = {t.id: t for t in trials}
    continued = Counter(t.proposal.parent for t in trials if isinstance(t.proposal, Continue))
    draws, selective_prompts = [], set()
    for trial in trials:
        if trial.id in continued or not isinstance(trial.proposal, Draw | Continue):
            continue
        lineage = [trial]
        while isinstance(proposal := lineage[0].proposal, Continue):
            parent = trials_by_id.get(proposal.parent)
            # A damaged log may lack a parent, or have a trial among its own ancestors.
            if parent is None or parent in lineage:
                break
            lineage.insert(0, parent)
        if isinstance(proposal, Draw) and _by_seed_alone(proposal):
            draws.append(WholeDraw(tuple(lineage)))
            unfinished = trial.proposal.until < 1 and not trial.error
            if unfinished or any(continued[t.id] > 1 for t in lineage):
                selective_prompts.add(trial.prompt.id)
    return [d for d in draws if _without_previews(d) or d.last.prompt.id not in selective_prompts]


def _by_seed_alone(draw: Draw) -> bool:
    """Returns whether nothing but its seed tells a draw from the others: they compare."""
    return draw.noise is None and not draw.rewrite and draw.pace == 1


def _without_previews(draw: WholeDraw) -> bool:
    first = draw.trials[0].proposal
    return isinstance(first, Draw) and first.until >= 1


def pruning_outcomes(
    pools: Sequence[Sequence[WholeDraw]], measures: Mapping[str, Sequence[Array]]
) -> tuple[PruningOutcome, ...]:
    """Returns what finishing a half, a quarter, … at every preview would have given.

    Args:
        pools: the draws of each prompt; only stops that all finished draws have are evaluated.
        measures: by name, for each prompt the values of its draws.
    """
    stops = common_stops(pools)
    shares = [2**-i for i in range(1, max(map(len, pools)).bit_length())]
    return tuple(
        outcome for stop in stops for outcome in _outcomes_at(stop, pools, measures, shares=shares)
    )


def common_stops(pools: Sequence[Sequence[WholeDraw]]) -> list[float]:
    """Returns the stops at which all finished draws have a preview to rank by."""
    stops_of = [
        {t.progress for t in d.trials[:-1]} for pool in pools for d in pool if d.last.finished
    ]
    return sorted(set.intersection(*stops_of)) if stops_of else []


def _outcomes_at(
    stop: float,
    pools: Sequence[Sequence[WholeDraw]],
    measures: Mapping[str, Sequence[Array]],
    *,
    shares: Sequence[float],
) -> Iterator[PruningOutcome]:
    """Yields the outcomes of every share at one stop."""
    goals = [np.array([draw.objective for draw in pool]) for pool in pools]
    previews = [[draw.preview(stop) for draw in pool] for pool in pools]
    pairs = [list(zip(p, g.tolist(), strict=True)) for p, g in zip(previews, goals, strict=True)]
    agreement = np.mean([spearman([p for p in some if not math.isnan(sum(p))]) for some in pairs])
    ranked = [order(values) for values in previews]
    # A dropped draw costs what it took up to its preview.
    spent = [[_costs(draw, stop) for draw in pool] for pool in pools]
    for share in shares:
        best = [ranks[: math.ceil(share * len(ranks))] for ranks in ranked]
        costs = [_sum_costs(draws, kept) for draws, kept in zip(spent, best, strict=True)]
        evaluations, seconds = np.mean(costs, axis=0)
        yield PruningOutcome(
            stop=stop,
            share=share,
            agreement=float(agreement),
            evaluations=float(evaluations),
            seconds=float(seconds),
            values={name: _mean_chosen(goals, rows, best) for name, rows in measures.items()},
        )


def _costs(draw: WholeDraw, stop: float) -> list[tuple[float, float]]:
    """Returns network evaluations and seconds up to a stop, and of the whole draw."""
    return [(some.evaluations, some.seconds) for some in (draw.until(stop), draw)]


def _sum_costs(
    draws: Sequence[Sequence[tuple[float, float]]], kept: Sequence[int]
) -> tuple[float, float]:
    """Returns network evaluations and seconds of a prompt that finishes only some draws."""
    spent = [whole if i in kept else part for i, (part, whole) in enumerate(draws)]
    return sum(evaluations for evaluations, _ in spent), sum(seconds for _, seconds in spent)


def _mean_chosen(
    goals: Sequence[Array], values: Sequence[Array], survivors: Sequence[Sequence[int]]
) -> Estimate:
    """Returns the value of the best of the finished draws, over prompts with a finite one."""

    def chosen(goals: Array, values: Array) -> Array:
        rows = expected_best(goals, values)[:, -1]
        return np.where(np.isnan(goals).all(axis=1), math.nan, rows)

    kept = [
        [row[places] for row, places in zip(rows, survivors, strict=True)]
        for rows in (goals, values)
    ]
    found = by_prompt(chosen, *kept)
    return estimate(found[np.isfinite(found)].reshape(-1, 1))[0]
