"""Best-of-N: draw N candidates at once and keep the best (random search, Ma et al. 2025).

Cost: N full drawings and N verifier calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from tts_verifier.errors import InputError
from tts_verifier.identity import seed_for
from tts_verifier.types import Draw, Proposal, Task, Trial


class BestOfN:
    """Draws `n` independent candidates.

    Raises:
        InputError: `n` is not a positive integer.
    """

    needs: frozenset[type] = frozenset({Draw})
    grows: frozenset[str] = frozenset({"n"})
    """Numbers that a finished run may be continued with a larger one of."""

    def __init__(self, n: int = 8) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InputError(f"n must be a positive integer, got {n!r}.", argument="n")
        self.n = n

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes what of the N is not yet in the history."""
        seeds = [seed_for(task.seed, task.prompt.text, i) for i in range(self.n)]
        drawn = {t.proposal for t in history}
        return [p for p in (Draw(seed) for seed in seeds) if p not in drawn]
