"""Drafts: draws many images cheaply, and draws the best of them again in full.

Source: the drafts of Flash-BoN. A draft and the image of the same seed share their noise, and so
mostly their layout, which is what a verifier judges first.
Cost: n * pace + keep draws, and n + keep verifier calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from tts_verifier.errors import InputError
from tts_verifier.strategies.common.arguments import check_integer, check_number
from tts_verifier.strategies.common.history import best, seeds
from tts_verifier.types import CachedDrafts, Drafts, Draw, Proposal, Task, Trial


class Drafting:
    """Draws `n` drafts, and the seeds of the best `keep` in full.

    Safe to share between threads: it keeps no state.

    A draft is a finished image, so it may be chosen where its refined image is worse.

    Args:
        n: drafts.
        keep: images that are refined, at most n.
        pace: the share of the generator's steps that a draft takes, in (0, 1).
        cached: drafts take all steps, but evaluate the network in at most the share `pace` of them,
            and never in more than half. At a pace of 0.5 they are nearer to the images than drafts
            with fewer steps; much below it they are not (`strategies/common/REWRITING.md`).

    Raises:
        InputError: an argument is out of range.
    """

    needs: frozenset[type] = frozenset({Draw, Drafts})

    def __init__(
        self, n: int = 8, keep: int = 2, *, pace: float = 0.4, cached: bool = False
    ) -> None:
        self.n, self.keep = check_integer("n", n), check_integer("keep", keep)
        if keep > n:
            raise InputError(f"keep must be at most n, got {keep} of {n}.", argument="keep")
        self.pace = check_number("pace", pace, lambda p: 0 < p < 1, rule="in (0, 1)")
        if not isinstance(cached, bool):
            raise InputError(f"cached must be true or false, got {cached!r}.", argument="cached")
        self.cached = cached
        if cached:
            self.needs = frozenset({Draw, Drafts, CachedDrafts})

    @property
    def most(self) -> int:
        """Finished images at most, drafts included."""
        return self.n + self.keep

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the drafts, then the best of them in all steps."""
        if not history:
            return [Draw(s, pace=self.pace, cached=self.cached) for s in seeds(task, self.n)]
        drafts = [t for t in history if isinstance(t.proposal, Draw) and t.proposal.pace < 1]
        if len(drafts) < len(history):
            return []
        usable = [t for t in drafts if t.finished]
        draws = [t.proposal for t in best(usable, self.keep)]
        return [Draw(draw.seed) for draw in draws if isinstance(draw, Draw)]
