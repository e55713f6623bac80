"""What pruning by previews would have given, from a log in which nothing was pruned.

`successive_halving` with `keep: 1` judges previews of all drawings and finishes every one; with
how many of them the search had gone on at a preview is then a matter of looking.
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
class Chain:
    """A whole drawing from noise of its own: its judged previews, if any, then itself."""

    trials: tuple[Trial, ...]

    @property
    def last(self) -> Trial:
        """The finished drawing, or where it failed."""
        return self.trials[-1]

    @property
    def objective(self) -> float:
        """Of the finished drawing; NaN where it failed."""
        return self.last.objective if self.last.finished else math.nan

    @property
    def evaluations(self) -> float:
        """Network evaluations of all its parts."""
        return float(sum(t.cost.network_evaluations for t in self.trials))

    @property
    def seconds(self) -> float:
        """Of drawing and judging all its parts."""
        return sum(t.cost.seconds for t in self.trials)

    def until(self, stop: float) -> Chain:
        """Returns what there was at a preview."""
        return Chain(tuple(t for t in self.trials if t.progress <= stop))


@dataclass(frozen=True, slots=True)
class Pruning:
    """Finishing only the best `share` by their previews at `stop`, a fraction of the steps.

    `agreement`: Spearman correlation of previews with the end, a prompt at a time, mean.
    `evaluations`, `seconds`: of a prompt, mean.
    """

    stop: float
    share: float
    agreement: float
    evaluations: float
    seconds: float
    values: Mapping[str, Estimate]


def chains(trials: Sequence[Trial]) -> list[Chain]:
    """Returns the whole drawings that tell nothing of each other, in order.

    Noise near another's depends on the history. Where a preview was not carried on, or carried
    on twice, what was finished of it is a selection. Neither is returned.
    """
    known = {t.id: t for t in trials}
    carried = Counter(t.proposal.parent for t in trials if isinstance(t.proposal, Continue))
    found, selected = [], set()
    for trial in trials:
        if trial.id in carried or not isinstance(trial.proposal, Draw | Continue):
            continue
        chain = [trial]
        while isinstance(step := chain[0].proposal, Continue):
            chain.insert(0, known[step.parent])
        if isinstance(step, Draw) and step.noise is None:
            found.append(Chain(tuple(chain)))
            unfinished = trial.proposal.until < 1 and not trial.error
            if unfinished or any(carried[t.id] > 1 for t in chain):
                selected.add(trial.prompt.id)
    return [c for c in found if _at_once(c) or c.last.prompt.id not in selected]


def _at_once(chain: Chain) -> bool:
    first = chain.trials[0].proposal
    return isinstance(first, Draw) and first.until >= 1


def prunings(
    pools: Sequence[Sequence[Chain]], measures: Mapping[str, Sequence[Array]]
) -> tuple[Pruning, ...]:
    """Returns what keeping a half, a quarter, … at every preview would have given.

    Args:
        pools: each prompt's drawings; only stops that all finished ones have are looked at.
        measures: by name, each prompt's values of its drawings.
    """
    seen = [{t.progress for t in c.trials[:-1]} for pool in pools for c in pool if c.last.finished]
    stops = sorted(set.intersection(*seen)) if seen else []
    shares = [2**-i for i in range(1, max(map(len, pools)).bit_length())]
    return tuple(_pruning(pools, measures, stop, share) for stop in stops for share in shares)


def _pruning(
    pools: Sequence[Sequence[Chain]],
    measures: Mapping[str, Sequence[Array]],
    stop: float,
    share: float,
) -> Pruning:
    kept, costs, orders = [], [], []
    for pool in pools:
        early = np.array([_preview(c, stop) for c in pool])
        best = order(early.tolist())[: math.ceil(share * len(pool))]
        kept.append(best)
        rest = [c for i, c in enumerate(pool) if i not in best]
        spent = [pool[i] for i in best] + [c.until(stop) for c in rest]
        costs.append([sum(c.evaluations for c in spent), sum(c.seconds for c in spent)])
        orders.append(list(zip(early.tolist(), (c.objective for c in pool), strict=True)))
    usable = [[p for p in pairs if not math.isnan(sum(p))] for pairs in orders]
    evaluations, seconds = np.mean(costs, axis=0)
    values = {}
    for name, columns in measures.items():
        rows = [_best(p, v, k) for p, v, k in zip(pools, columns, kept, strict=True)]
        finite = np.array([row for row in rows if math.isfinite(row)]).reshape(-1, 1)
        values[name] = estimate(finite)[0]
    return Pruning(
        stop=stop,
        share=share,
        agreement=float(np.mean([spearman(pairs) for pairs in usable])),
        evaluations=float(evaluations),
        seconds=float(seconds),
        values=values,
    )


def _preview(chain: Chain, stop: float) -> float:
    """Returns the objective at a preview; NaN where it failed."""
    return next((t.objective for t in chain.trials if t.progress == stop), math.nan)


def _best(pool: Sequence[Chain], values: Array, kept: Sequence[int]) -> float:
    """Returns the value of the best of those kept; NaN where none has a usable objective."""
    goals = np.array([pool[i].objective for i in kept])
    if np.isnan(goals).all():
        return math.nan
    return float(expected_best(goals, values[list(kept)])[-1])
