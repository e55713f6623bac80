"""Beam over seeds: previews are judged, the best kept and branched with fresh noise.

Source: the beam of "Inference-time scaling for diffusion models", arXiv 2501.09732, and
Flash-BoN's resuming from captured latents; the quota for each first drawing is ours.
Cost, with the stops s1 < s2 < ... < 1: n * s1 + sum of keep * branches * (s(k+1) - sk + renoise)
drawings, and n + keep * branches verifier calls a stop after the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tts_verifier.errors import InputError
from tts_verifier.strategies.shared import best, positive, rising, rounds, seeds, usable, within
from tts_verifier.types import Continue, Draw, Proposal, Task, Trial


class SeedBeam:
    """Draws `n` previews; at every stop carries the best on, each in several branches.

    No first drawing may be the ancestor of more than half of those carried on, rounded up,
    as long as others are there.

    Args:
        n: previews to begin with.
        keep: how many are carried on, at most n.
        branches: of each, with fresh noise.
        stops: fractions of the steps at which previews are judged, rising to 1.
        renoise: the fraction of the steps by which a branch first goes back, in (0, 1).

    Raises:
        InputError: an argument is not usable.
    """

    needs: frozenset[type] = frozenset({Draw, Continue})

    def __init__(
        self,
        n: int = 8,
        keep: int = 2,
        *,
        branches: int = 2,
        stops: Sequence[float] = (0.4, 0.7, 1.0),
        renoise: float = 0.1,
    ) -> None:
        self.n, self.keep = positive("n", n), positive("keep", keep)
        self.branches = positive("branches", branches)
        if keep > n:
            raise InputError(f"keep must be at most n, got {keep} of {n}.", argument="keep")
        self.stops = rising("stops", stops)
        self.renoise = within("renoise", renoise, lambda r: 0 < r < 1, rule="in (0, 1)")

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the previews, then branches of the kept ones up to the next stop."""
        level = rounds(history)
        if level == len(self.stops):
            return []
        if level == 0:
            return [Draw(seed, self.stops[0]) for seed in seeds(task, self.n)]
        last = [t for t in history if t.round == history[-1].round]
        fresh = seeds(task, self.branches, purpose=f"branch{level}")
        return [
            Continue(trial.id, self.stops[level], seed, renoise=self.renoise)
            for trial in diverse(usable(last), self.keep, history)
            for seed in fresh
        ]


def diverse(trials: Sequence[Trial], count: int, history: Sequence[Trial]) -> list[Trial]:
    """Returns the `count` best, best first, of which no root has more than half, rounded up.

    Where that leaves places free, the best of the others fill them.
    """
    known = {t.id: t for t in history}
    quota = (count + 1) // 2
    kept: list[Trial] = []
    ranked = best(trials, len(trials))
    for trial in ranked:
        siblings = sum(_root(t, known) == _root(trial, known) for t in kept)
        if len(kept) < count and siblings < quota:
            kept.append(trial)
    kept += [t for t in ranked if t not in kept][: count - len(kept)]
    return [t for t in ranked if t in kept]


def _root(trial: Trial, known: Mapping[str, Trial]) -> str:
    while trial.parent_id is not None:
        trial = known[trial.parent_id]
    return trial.id
