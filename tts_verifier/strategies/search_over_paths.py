"""Search over paths: noised back a little, denoised a little further, the best kept each time.

Source: "Inference-time scaling for diffusion models beyond scaling denoising steps", arXiv
2501.09732, algorithm "search over paths".
Cost: n * start, then a round keep * branches * forward drawings, for
ceil((1 - start) / (forward - back)) rounds; a verifier call for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from tts_verifier.errors import InputError
from tts_verifier.strategies.shared import best, positive, rounds, seeds, usable, within
from tts_verifier.types import Continue, Draw, Proposal, Task, Trial


class SearchOverPaths:
    """Draws `n` previews, then lets the best `keep` try `n // keep` paths each, step by step.

    Args:
        n: previews to begin with.
        keep: paths carried on, at most n.
        start: the fraction of the steps of the first previews, in (0, 1).
        forward: by which a path goes on in a round, in (0, 1).
        back: by which it first goes back with fresh noise, above 0, below forward and at
            most start.

    Raises:
        InputError: an argument is not usable.
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
        self.n, self.keep = positive("n", n), positive("keep", keep)
        if keep > n:
            raise InputError(f"keep must be at most n, got {keep} of {n}.", argument="keep")
        self.start = within("start", start, lambda s: 0 < s < 1, rule="in (0, 1)")
        self.forward = within("forward", forward, lambda f: 0 < f < 1, rule="in (0, 1)")
        self.back = within(
            "back",
            back,
            lambda b: 0 < b < forward and b <= start,
            rule="above 0, below forward and at most start",
        )

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the previews, then paths from the best, until they are at the end."""
        level = rounds(history)
        if level == 0:
            return [Draw(seed, self.start) for seed in seeds(task, self.n)]
        last = usable([t for t in history if t.round == history[-1].round])
        until = self.start + level * (self.forward - self.back)
        # Sums of floats are not exact: 0.4 + 3 * 0.2 is to be the end.
        until = 1.0 if until > 1 - 1e-9 else round(until, 9)
        fresh = seeds(task, self.n // self.keep, purpose=f"path{level}")
        return [
            Continue(trial.id, until, seed, renoise=self.back)
            for trial in best(last, self.keep)
            for seed in fresh
        ]
