"""Successive halving: drops the worse previews early and spends the steps on the better ones.

Source: Jamieson and Talwalkar, "Non-stochastic best arm identification" (arXiv 1502.07943);
verifying x0 previews as in Flash-BoN. The spared share and the test whether previews predict are
our additions.
Cost: sum of n_k * (s(k+1) - sk) draws, where n_k previews are continued at stop sk, and sum of
n_k verifier calls: 16 -> 8 -> 4 at 0.3 and 0.6 takes 8.8 draws and 28 calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tts_verifier.choice.rank_correlation import spearman
from tts_verifier.errors import InputError
from tts_verifier.strategies.common.arguments import check_integer, check_number, check_stops
from tts_verifier.strategies.common.history import best, propose_at_stops, seeds
from tts_verifier.types import Continue, Draw, Proposal, Task, Trial


class SuccessiveHalving:
    """Draws `n` previews and continues the better share of them at every stop.

    Safe to share between threads: it keeps no state.

    A strategy sees the history of one prompt only, so it cannot learn from other prompts that
    previews at some stop do not predict the result. Two rules guard against this. First, the
    share `spare` of the continued previews is picked from the worse ones at random, by seed.
    Second, if the Spearman correlation between the objectives at two consecutive stops is below
    `trust` among the continued previews, nothing more is dropped.

    Args:
        n: previews of the first round.
        keep: share that is continued at every stop, in (0, 1], rounded up; or a list of one share
            for each stop but the last. From the log of a run with `keep: 1`, `tts-replay` computes
            what smaller shares would have given, and finds schedules.
        stops: fractions of the denoising steps at which previews are verified, rising to 1.
        spare: in [0, 1).
        trust: in [-1, 1]; -1 = always drop.

    Raises:
        InputError: an argument is out of range.
    """

    needs: frozenset[type] = frozenset({Draw, Continue})

    def __init__(
        self,
        n: int = 16,
        keep: float | Sequence[float] = 0.5,
        *,
        stops: Sequence[float] = (0.3, 0.6, 1.0),
        spare: float = 0.0,
        trust: float = 0.0,
    ) -> None:
        self.n, self.stops = check_integer("n", n), check_stops("stops", stops)
        shares = [keep] if isinstance(keep, (int, float)) else list(keep)
        if not isinstance(keep, (int, float)) and len(shares) != len(self.stops) - 1:
            raise InputError(
                f"keep must be one share, or one for each stop but the last, got {keep!r} for "
                f"{len(self.stops)} stops.",
                argument="keep",
            )
        checked = [check_number("keep", k, lambda k: 0 < k <= 1, rule="in (0, 1]") for k in shares]
        self.keep = checked[0] if isinstance(keep, (int, float)) else tuple(checked)
        self.spare = check_number("spare", spare, lambda s: 0 <= s < 1, rule="in [0, 1)")
        self.trust = check_number("trust", trust, lambda t: -1 <= t <= 1, rule="in [-1, 1]")

    @property
    def most(self) -> int:
        """Finished images at most."""
        return self.n

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the previews, then continues the better ones to the next stop."""

        def proceed(level: int, previews: list[Trial]) -> list[Proposal]:
            (seed,) = seeds(task, 1, purpose=f"carry{level}")
            if not self._distrusts(history):
                previews = self._survivors(previews, level, seed)
            return [Continue(t.id, self.stops[level], seed) for t in previews]

        return propose_at_stops(task, history, n=self.n, stops=self.stops, proceed=proceed)

    def _survivors(self, previews: Sequence[Trial], level: int, seed: int) -> list[Trial]:
        """Returns the better share of the previews, and the spared ones of the others."""
        keep = self.keep[level - 1] if isinstance(self.keep, tuple) else self.keep
        count = math.ceil(round(keep * len(previews), 9))
        spared = math.floor(self.spare * count)
        ranked = best(previews, len(previews))
        top, rest = ranked[: count - spared], ranked[count - spared :]
        # Drawn by the round's seed: the same history gives the same proposals.
        picked = np.random.default_rng(seed).permutation(len(rest))[:spared]
        return [*top, *(rest[i] for i in sorted(picked))]

    def _distrusts(self, history: Sequence[Trial]) -> bool:
        """Returns whether the order at any stop failed to predict the order at the next one."""
        trials_by_id = {t.id: t for t in history}
        for number in {t.round for t in history}:
            continued = [t for t in history if t.round == number and t.parent_id is not None]
            pairs = [(trials_by_id[t.parent_id or ""].objective, t.objective) for t in continued]
            # A failed preview has no place in an order.
            if spearman([p for p in pairs if not math.isnan(sum(p))]) < self.trust:
                return True
        return False
