"""Successive halving: previews prune early, so that most steps go to promising candidates.

Source: Jamieson and Talwalkar, "Non-stochastic best arm identification" (arXiv 1502.07943);
judging x0 previews as in Flash-BoN. Carrying some on regardless, and not trusting a stop
whose order did not last, are ours.
Cost: sum of n_k * (s(k+1) - sk) drawings, with n_k carried on at stop sk, and sum of n_k
verifier calls: 16 -> 8 -> 4 at 0.3 and 0.6 takes 8.8 drawings and 28 calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tts_verifier.strategies.shared import best, positive, rising, rounds, seeds, usable, within
from tts_verifier.types import Continue, Draw, Proposal, Task, Trial

FEWEST_PAIRS = 4
"""Fewer pairs say nothing about whether one order predicts another."""


class SuccessiveHalving:
    """Draws `n` previews and carries the better share on at every stop.

    A strategy sees one prompt's history only, so a bad stop cannot be known from other
    prompts. Two things guard against it: of those carried on, the share `spare` is picked
    from the worse ones by seed; and where the order at the last stop, among those carried
    on, has a Spearman correlation below `trust` with the order at this one, previews do not
    predict and nothing more is pruned.

    Args:
        n: previews to begin with.
        keep: the share carried on at every stop, in (0, 1], rounded up; from the log of a run
            with 1, `tts-replay` tells what less would have given.
        stops: fractions of the steps at which previews are judged, rising to 1.
        spare: in [0, 1).
        trust: in [-1, 1]; -1 trusts any order.

    Raises:
        InputError: an argument is not usable.
    """

    needs: frozenset[type] = frozenset({Draw, Continue})

    def __init__(
        self,
        n: int = 16,
        keep: float = 0.5,
        *,
        stops: Sequence[float] = (0.3, 0.6, 1.0),
        spare: float = 0.0,
        trust: float = 0.0,
    ) -> None:
        self.n, self.stops = positive("n", n), rising("stops", stops)
        self.keep = within("keep", keep, lambda k: 0 < k <= 1, rule="in (0, 1]")
        self.spare = within("spare", spare, lambda s: 0 <= s < 1, rule="in [0, 1)")
        self.trust = within("trust", trust, lambda t: -1 <= t <= 1, rule="in [-1, 1]")

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the previews, then carries the better ones on to the next stop."""
        level = rounds(history)
        if level == len(self.stops):
            return []
        if level == 0:
            return [Draw(seed, self.stops[0]) for seed in seeds(task, self.n)]
        last = [t for t in history if t.round == history[-1].round]
        (seed,) = seeds(task, 1, purpose=f"carry{level}")
        kept = usable(last) if self._distrusts(history) else self._kept(usable(last), seed)
        return [Continue(t.id, self.stops[level], seed) for t in kept]

    def _kept(self, trials: Sequence[Trial], seed: int) -> list[Trial]:
        count = math.ceil(self.keep * len(trials))
        spared = math.floor(self.spare * count)
        ranked = best(trials, len(trials))
        top, rest = ranked[: count - spared], ranked[count - spared :]
        picked = np.random.default_rng(seed).permutation(len(rest))[:spared]
        return [*top, *(rest[i] for i in sorted(picked))]

    def _distrusts(self, history: Sequence[Trial]) -> bool:
        """Says whether the order at any stop did not last until the next."""
        known = {t.id: t for t in history}
        for number in {t.round for t in history}:
            row = [t for t in history if t.round == number and t.parent_id is not None]
            pairs = [(known[t.parent_id or ""].objective, t.objective) for t in row]
            if spearman([p for p in pairs if not math.isnan(sum(p))]) < self.trust:
                return True
        return False


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Returns the rank correlation of pairs, ties sharing their mean rank; 1 if unknown."""
    if len(pairs) < FEWEST_PAIRS:
        return 1.0
    one, other = (_ranks(column) for column in np.asarray(pairs, np.float64).T)
    spread = float(one.std() * other.std())
    return float(np.mean((one - one.mean()) * (other - other.mean()))) / spread if spread else 1.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    below = (values[:, None] > values).sum(axis=1)
    same = (values[:, None] == values).sum(axis=1)
    ranks: NDArray[np.float64] = below + (same - 1) / 2
    return ranks
