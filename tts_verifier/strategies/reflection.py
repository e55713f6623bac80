"""Reflection: has the prompt rewritten according to the best image's verdict, and draws again.

Source: prompt refinement by a verifier's feedback as in ReflectionFlow (arXiv 2504.16080) and
Reflect-DiT (arXiv 2503.12271), without their trained editors. All images are verified against the
original prompt, so a rewriting that drifts away from it cannot win.
Cost: n draws; then, in every round, one rewriting and `width` draws, and as many verifier calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tts_verifier.errors import InputError
from tts_verifier.interfaces import Rewriter
from tts_verifier.registry import built
from tts_verifier.strategies.common.arguments import check_integer, check_number
from tts_verifier.strategies.common.history import best, seeds
from tts_verifier.types import VERIFIES_ONLY, Draw, Proposal, Rewrite, Rewritten, Task, Trial


class Reflection:
    """Draws a few images; then rewrites the prompt from the best verdict, round after round.

    As safe to share between threads as its rewriter; it keeps no state itself.

    Each round takes the best image whose verdict has not been used yet. If the rewriter fails, or
    has no better text, the round draws from the prompt instead.

    Args:
        n: draws of the first round.
        rounds: rounds of rewriting.
        width: draws of every such round.
        rewriter: a rewriter, or a table of its `name` and arguments: "shapes" for the miniature
            world, "chat" for a language model.
        enough: the search ends when the best objective reaches it; None = never.

    Raises:
        InputError: an argument is out of range, or the rewriter cannot be built.
    """

    needs: frozenset[type] = frozenset({Draw, Rewritten})

    def __init__(
        self,
        n: int = 2,
        rounds: int = 2,
        *,
        width: int = 2,
        rewriter: Rewriter | Mapping[str, Any],
        enough: float | None = None,
    ) -> None:
        self.n, self.rounds = check_integer("n", n), check_integer("rounds", rounds)
        self.width = check_integer("width", width)
        self.enough = enough
        if enough is not None:
            self.enough = check_number(
                "enough", enough, lambda e: -math.inf < e < math.inf, rule="a finite number"
            )
        self.rewriter = _build_rewriter(rewriter)
        """Carries out the rewriting."""

    @property
    def most(self) -> int:
        """Finished images at most."""
        return self.n + self.rounds * self.width

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the draws, then a rewriting and draws from it, in turns."""
        if not history:
            return [Draw(seed) for seed in seeds(task, self.n)]
        if isinstance(history[-1].proposal, Rewrite):
            return self._draws(task, history)
        images = [t for t in history if t.finished and not isinstance(t.proposal, VERIFIES_ONLY)]
        used = {t.proposal.parent for t in history if isinstance(t.proposal, Rewrite)}
        top = next(iter(best(images)), None)
        enough = self.enough is not None and top is not None and top.objective >= self.enough
        left = [t for t in images if t.id not in used and not math.isnan(t.objective)]
        if enough or not left or len(used) >= self.rounds:
            return []
        return [Rewrite(best(left)[0].id)]

    def _draws(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Returns draws from the last rewriting, of seeds that are not used yet."""
        last = history[-1]
        text = last.verdict.text if last.verdict is not None and not last.error else ""
        source = last.id if text and text != task.prompt.text else ""
        first = sum(isinstance(t.proposal, Draw) for t in history)
        return [Draw(seed, rewrite=source) for seed in seeds(task, self.width, first=first)]


def _build_rewriter(rewriter: Rewriter | Mapping[str, Any]) -> Rewriter:
    if isinstance(rewriter, Mapping):
        try:
            rewriter = built("rewriter", rewriter)
        except InputError as error:
            argument = ".".join(filter(None, ("rewriter", error.argument)))
            raise InputError(str(error), argument=argument) from error
    # A class has the methods too.
    if isinstance(rewriter, type) or not isinstance(rewriter, Rewriter):
        raise InputError(
            f"rewriter must be a rewriter or a table, got {rewriter!r}.", argument="rewriter"
        )
    return rewriter
