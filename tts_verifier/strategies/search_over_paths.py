"""Search over paths: adds some noise back, denoises further, and keeps the best in every round.

Source: "Inference-time scaling for diffusion models beyond scaling denoising steps", arXiv
2501.09732, algorithm "search over paths".
Cost: n * start draws, then keep * branches * forward draws in each of
ceil((1 - start) / (forward - back)) rounds; a verifier call for every candidate.
"""

from __future__ import annotations

from collections.abc import Sequence

from tts_verifier.errors import InputError
from tts_verifier.strategies.common.arguments import check_integer, check_number
from tts_verifier.strategies.common.history import best, rounds_done, seeds, unfinished
from tts_verifier.types import Continue, Draw, Proposal, Task, Trial


class SearchOverPaths:
    """Draws `n` previews, then continues the best `keep` on `n // keep` paths each, step by step.

    Safe to share between threads: it keeps no state.

    Args:
        n: previews of the first round.
        keep: previews that are continued, at most n.
        start: fraction of the denoising steps of the first previews, in (0, 1).
        forward: fraction by which a path advances in a round, in (0, 1).
        back: fraction by which it first goes back with fresh noise, above 0, below `forward` and
            at most `start`.

    Raises:
        InputError: an argument is out of range.
    """

    needs: frozenset[type] = frozenset({Draw, Continue})

    def __init__(
        self,
        n: int = 4,
        keep: int = 2,
        *,
        start: float = 0.4,
        forward: float = 0.3,
        back: float = 0.1,
    ) -> None:
        self.n, self.keep = check_integer("n", n), check_integer("keep", keep)
        if keep > n:
            raise InputError(f"keep must be at most n, got {keep} of {n}.", argument="keep")
        self.start = check_number("start", start, lambda s: 0 < s < 1, rule="in (0, 1)")
        self.forward = check_number("forward", forward, lambda f: 0 < f < 1, rule="in (0, 1)")
        self.back = check_number(
            "back",
            back,
            lambda b: 0 < b < forward and b <= start,
            rule="above 0, below forward and at most start",
        )

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the previews, then paths from the best, until they have taken all steps."""
        level = rounds_done(history)
        if level == 0:
            return [Draw(seed, self.start) for seed in seeds(task, self.n)]
        previews = unfinished([t for t in history if t.round == history[-1].round])
        until = self.start + level * (self.forward - self.back)
        # Sums of floats are not exact: 0.4 + 3 * 0.2 must reach the end.
        until = 1.0 if until > 1 - 1e-9 else round(until, 9)
        # All parents share the seeds: paths of one parent differ, and so do parents.
        fresh = seeds(task, self.n // self.keep, purpose=f"path{level}")
        return [
            Continue(trial.id, until, seed, renoise=self.back)
            for trial in best(previews, self.keep)
            for seed in fresh
        ]
