"""Zero-order search: better noise is looked for near the best so far (Ma et al. 2025).

Source: "Inference-time scaling for diffusion models beyond scaling denoising steps", arXiv
2501.09732, algorithm "zero-order search". Shrinking the radius after a round without gain is ours.
Cost: 1 + rounds * neighbours drawings and as many verifier calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tts_verifier.strategies.shared import best, positive, rounds, seeds, within
from tts_verifier.types import Draw, Near, Proposal, Task, Trial


class ZeroOrder:
    """Draws one pivot, then `neighbours` near the best so far, `rounds` times.

    As long as nothing has a usable score, a round draws from fresh noise.

    Args:
        neighbours: of the pivot in a round.
        rounds: after the first drawing.
        radius: the share of fresh noise, in (0, 1].
        shrink: what the radius is multiplied by after a round without a new best, in (0, 1].

    Raises:
        InputError: an argument is not usable.
    """

    needs: frozenset[type] = frozenset({Draw, Near})

    def __init__(
        self, neighbours: int = 4, rounds: int = 2, *, radius: float = 0.4, shrink: float = 0.7
    ) -> None:
        self.neighbours = positive("neighbours", neighbours)
        self.rounds = positive("rounds", rounds)
        self.radius = within("radius", radius, lambda r: 0 < r <= 1, rule="in (0, 1]")
        self.shrink = within("shrink", shrink, lambda s: 0 < s <= 1, rule="in (0, 1]")

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the pivot, then its neighbours, until the rounds are over."""
        done = rounds(history)
        if done == 0:
            return [Draw(seed) for seed in seeds(task, 1)]
        if done > self.rounds:
            return []
        fresh = seeds(task, self.neighbours, first=1 + (done - 1) * self.neighbours)
        pivot = best(history)[0]
        if math.isnan(pivot.objective):
            return [Draw(seed) for seed in fresh]
        radius = self.radius * self.shrink ** self._failures(history)
        return [Draw(seed, noise=Near(pivot.id, radius)) for seed in fresh]

    def _failures(self, history: Sequence[Trial]) -> int:
        """Returns how many rounds about a pivot brought nothing better."""
        top, failures = -math.inf, 0
        for number in range(history[-1].round + 1):
            values = [t.objective for t in history if t.round == number]
            found = max((v for v in values if not math.isnan(v)), default=-math.inf)
            failures += found <= top and math.isfinite(top)
            top = max(top, found)
        return failures
