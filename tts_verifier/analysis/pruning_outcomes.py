"""What dropping candidates by their previews would have given, from a log that kept all of them.

`successive_halving` with `keep: 1` verifies previews of all draws and finishes every one of them.
Its log therefore has the result of every choice among the previews.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tts_verifier.analysis.expected_best import Array, Estimate, estimate, expected_best
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
            lineage.insert(0, trials_by_id[proposal.parent])
        if isinstance(proposal, Draw) and proposal.noise is None:
            draws.append(WholeDraw(tuple(lineage)))
            unfinished = trial.proposal.until < 1 and not trial.error
            if unfinished or any(continued[t.id] > 1 for t in lineage):
                selective_prompts.add(trial.prompt.id)
    return [d for d in draws if _without_previews(d) or d.last.prompt.id not in selective_prompts]


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
    stops_of = [
        {t.progress for t in d.trials[:-1]} for pool in pools for d in pool if d.last.finished
    ]
    # At another stop, some of the finished draws would have no preview to rank by.
    stops = sorted(set.intersection(*stops_of)) if stops_of else []
    shares = [2**-i for i in range(1, max(map(len, pools)).bit_length())]
    return tuple(_outcome(pools, measures, stop, share) for stop in stops for share in shares)


def _outcome(
    pools: Sequence[Sequence[WholeDraw]],
    measures: Mapping[str, Sequence[Array]],
    stop: float,
    share: float,
) -> PruningOutcome:
    survivors, costs, correlations = [], [], []
    for pool in pools:
        previews = [draw.preview(stop) for draw in pool]
        best = order(previews)[: math.ceil(share * len(pool))]
        survivors.append(best)
        # A dropped draw costs what it took up to its preview.
        spent = [d if i in best else d.until(stop) for i, d in enumerate(pool)]
        costs.append([sum(d.evaluations for d in spent), sum(d.seconds for d in spent)])
        pairs = zip(previews, (d.objective for d in pool), strict=True)
        correlations.append(spearman([p for p in pairs if not math.isnan(sum(p))]))
    evaluations, seconds = np.mean(costs, axis=0)
    values = {}
    for name, columns in measures.items():
        rows = [_chosen_value(p, v, s) for p, v, s in zip(pools, columns, survivors, strict=True)]
        finite = np.array([row for row in rows if math.isfinite(row)]).reshape(-1, 1)
        values[name] = estimate(finite)[0]
    return PruningOutcome(
        stop=stop,
        share=share,
        agreement=float(np.mean(correlations)),
        evaluations=float(evaluations),
        seconds=float(seconds),
        values=values,
    )


def _chosen_value(pool: Sequence[WholeDraw], values: Array, survivors: Sequence[int]) -> float:
    """Returns the value of the best of the finished draws; NaN if no objective is usable."""
    objectives = np.array([pool[i].objective for i in survivors])
    if np.isnan(objectives).all():
        return math.nan
    return float(expected_best(objectives, values[list(survivors)])[-1])
