"""Best-of-N: draws N candidates at once and keeps the best (random search, Ma et al. 2025).

Cost: N full draws and N verifier calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from tts_verifier.strategies.common.arguments import check_integer
from tts_verifier.strategies.common.history import seeds
from tts_verifier.types import Draw, Proposal, Task, Trial


class BestOfN:
    """Draws `n` independent candidates.

    Safe to share between threads: it keeps no state.

    Raises:
        InputError: `n` is not a positive integer.
    """

    needs: frozenset[type] = frozenset({Draw})
    grows: frozenset[str] = frozenset({"n"})
    """Arguments that may be larger when a finished run is continued."""

    def __init__(self, n: int = 8) -> None:
        self.n = check_integer("n", n)

    @property
    def most(self) -> int:
        """Finished images at most."""
        return self.n

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes those of the N draws that are not in the history."""
        # Only what is missing: a larger n continues the finished run of a smaller one.
        done = {t.proposal for t in history}
        return [p for p in map(Draw, seeds(task, self.n)) if p not in done]
