"""Zero-order search: looks for better noise near the best so far (Ma et al. 2025).

Source: "Inference-time scaling for diffusion models beyond scaling denoising steps", arXiv
2501.09732, algorithm "zero-order search". Shrinking the radius after a round without gain is our
addition.
Cost: 1 + rounds * neighbours draws and as many verifier calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tts_verifier.strategies.common.arguments import check_integer, check_number
from tts_verifier.strategies.common.history import best, rounds_done, seeds
from tts_verifier.types import Draw, Near, Proposal, Task, Trial


class ZeroOrder:
    """Draws one pivot, then `neighbours` near the best so far, for `rounds` rounds.

    Safe to share between threads: it keeps no state.

    As long as no candidate has a usable score, a round draws from fresh noise.

    Args:
        neighbours: of the pivot in a round.
        rounds: after the first draw.
        radius: share of fresh noise in a neighbour, in (0, 1].
        shrink: factor of the radius after a round without a new best, in (0, 1].

    Raises:
        InputError: an argument is out of range.
    """

    needs: frozenset[type] = frozenset({Draw, Near})

    def __init__(
        self, neighbours: int = 4, rounds: int = 2, *, radius: float = 0.4, shrink: float = 0.7
    ) -> None:
        self.neighbours = check_integer("neighbours", neighbours)
        self.rounds = check_integer("rounds", rounds)
        self.radius = check_number("radius", radius, lambda r: 0 < r <= 1, rule="in (0, 1]")
        self.shrink = check_number("shrink", shrink, lambda s: 0 < s <= 1, rule="in (0, 1]")

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the pivot, then its neighbours, until all rounds are done."""
        done = rounds_done(history)
        if done == 0:
            return [Draw(seed) for seed in seeds(task, 1)]
        if done > self.rounds:
            return []
        fresh = seeds(task, self.neighbours, first=1 + (done - 1) * self.neighbours)
        pivot = best(history)[0]
        if math.isnan(pivot.objective):
            return [Draw(seed) for seed in fresh]
        radius = self.radius * self.shrink ** self._rounds_without_gain(history)
        return [Draw(seed, noise=Near(pivot.id, radius)) for seed in fresh]

    def _rounds_without_gain(self, history: Sequence[Trial]) -> int:
        top, count = -math.inf, 0
        # Derived from the history: a strategy has no state to count in.
        for number in range(history[-1].round + 1):
            values = [t.objective for t in history if t.round == number]
            highest = max((v for v in values if not math.isnan(v)), default=-math.inf)
            count += highest <= top and math.isfinite(top)
            top = max(top, highest)
        return count
