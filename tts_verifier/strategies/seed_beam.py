"""Beam search over seeds: keeps the best previews and branches them with fresh noise.

Source: the beam of "Inference-time scaling for diffusion models", arXiv 2501.09732, and
Flash-BoN's resuming from captured latents. The quota for each root is our addition.
Cost, with the stops s1 < s2 < ... < 1: n * s1 + sum of keep * branches * (s(k+1) - sk + renoise)
draws, and n + keep * branches verifier calls for each stop after the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tts_verifier.errors import InputError
from tts_verifier.strategies.common.arguments import check_integer, check_number, check_stops
from tts_verifier.strategies.common.history import best, propose_at_stops, seeds
from tts_verifier.types import Continue, Draw, Proposal, Task, Trial


class SeedBeam:
    """Draws `n` previews; at every stop continues the best of them, each in several branches.

    Safe to share between threads: it keeps no state.

    At most half of the continued previews, rounded up, descend from one root, as long as there
    are others.

    Args:
        n: previews of the first round.
        keep: previews that are continued, at most n.
        branches: continuations of each, with fresh noise.
        stops: fractions of the denoising steps at which previews are verified, rising to 1.
        renoise: fraction of the steps by which a branch first goes back, in (0, 1).

    Raises:
        InputError: an argument is out of range.
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
        self.n, self.keep = check_integer("n", n), check_integer("keep", keep)
        self.branches = check_integer("branches", branches)
        if keep > n:
            raise InputError(f"keep must be at most n, got {keep} of {n}.", argument="keep")
        self.stops = check_stops("stops", stops)
        self.renoise = check_number("renoise", renoise, lambda r: 0 < r < 1, rule="in (0, 1)")

    @property
    def most(self) -> int:
        """Finished images at most."""
        return self.keep * self.branches

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the previews, then branches of the best ones up to the next stop."""

        def proceed(level: int, previews: list[Trial]) -> list[Proposal]:
            fresh = seeds(task, self.branches, purpose=f"branch{level}")
            return [
                Continue(trial.id, self.stops[level], seed, renoise=self.renoise)
                for trial in best_of_roots(previews, self.keep, history)
                for seed in fresh
            ]

        return propose_at_stops(task, history, n=self.n, stops=self.stops, proceed=proceed)


def best_of_roots(trials: Sequence[Trial], count: int, history: Sequence[Trial]) -> list[Trial]:
    """Returns the `count` best trials, with at most half of them, rounded up, from one root.

    If the quota leaves places free, the best of the remaining trials fill them.

    Args:
        trials: of one round.
        count: trials to return.
        history: all trials of the prompt, to find the roots.

    Returns:
        Trials, best first.
    """
    trials_by_id = {t.id: t for t in history}
    # Without a quota, the branches of one good root soon take all places.
    quota = (count + 1) // 2
    chosen: list[Trial] = []
    ranked = best(trials, len(trials))
    for trial in ranked:
        siblings = sum(_root(t, trials_by_id) == _root(trial, trials_by_id) for t in chosen)
        if len(chosen) < count and siblings < quota:
            chosen.append(trial)
    chosen += [t for t in ranked if t not in chosen][: count - len(chosen)]
    return [t for t in ranked if t in chosen]


def _root(trial: Trial, trials_by_id: Mapping[str, Trial]) -> str:
    """Returns the id of the draw that a trial descends from."""
    while trial.parent_id is not None:
        trial = trials_by_id[trial.parent_id]
    return trial.id
