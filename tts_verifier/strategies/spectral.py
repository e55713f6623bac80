"""Spectral evolution: the cross-entropy method in the low wavelet band of the initial noise.

Source: SES as in DiffSynth-Studio (the low band decides the layout); Rubinstein, "The
cross-entropy method" (1999). The variance has a floor, and the first drawing is the seed's own.
Cost: population * rounds drawings and as many verifier calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tts_verifier.errors import InputError
from tts_verifier.strategies.shared import best, positive, rounds, seeds
from tts_verifier.types import Draw, LowBand, Proposal, Task, Trial

Values = NDArray[np.float64]

FLOOR = 0.05
"""The least variance of a coefficient, so that a search never stands still."""


class Spectral:
    """Draws a population whose low bands follow the best so far; the high bands stay one seed's.

    Args:
        population: drawings of a round.
        rounds: of them.
        elite: how many of the best the next round follows, below population and at least 2.
        shape: of the low band, (channels, height, width): the latents', its sides divided by
            2^level.
        level: Haar steps.

    Raises:
        InputError: an argument is not usable.
    """

    needs: frozenset[type] = frozenset({Draw, LowBand})

    def __init__(
        self,
        population: int = 4,
        rounds: int = 2,
        *,
        elite: int = 2,
        shape: Sequence[int] = (4, 4, 4),
        level: int = 2,
    ) -> None:
        self.population = positive("population", population, 3)
        self.rounds, self.level = positive("rounds", rounds), positive("level", level)
        self.elite = positive("elite", elite, 2)
        if elite >= population:
            raise InputError(
                f"elite must be below population, got {elite} of {population}.", argument="elite"
            )
        if len(shape) != 3:
            raise InputError(
                f"shape must be (channels, height, width), got {shape!r}.", argument="shape"
            )
        self.size = math.prod(positive("shape", side) for side in shape)

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the first population, then ones that follow the elite."""
        done = rounds(history)
        if done == self.rounds:
            return []
        mean, spread = self._fit(history)
        (own,) = seeds(task, 1)
        first = [Draw(own)] if done == 0 else []
        count = self.population - len(first)
        return [
            *first,
            *(
                Draw(own, noise=self._band(mean, spread, seed))
                for seed in seeds(task, count, purpose=f"band{done}")
            ),
        ]

    def _fit(self, history: Sequence[Trial]) -> tuple[Values, Values]:
        """Returns mean and standard deviation of every coefficient among the elite."""
        bands = [t for t in history if isinstance(t.proposal, Draw)]
        scored = [t for t in bands if not math.isnan(t.objective)]
        rows = [
            t.proposal.noise.coefficients
            for t in best(scored, len(scored))
            if isinstance(t.proposal, Draw) and isinstance(t.proposal.noise, LowBand)
        ][: self.elite]
        if len(rows) < 2:
            return np.zeros(self.size), np.ones(self.size)
        elite = np.array(rows)
        return elite.mean(axis=0), np.sqrt(elite.var(axis=0) + FLOOR)

    def _band(self, mean: Values, spread: Values, seed: int) -> LowBand:
        drawn = mean + spread * np.random.default_rng(seed).standard_normal(self.size)
        # The norm of normal noise: denoisers have seen no other.
        drawn *= math.sqrt(self.size) / float(np.linalg.norm(drawn))
        return LowBand(tuple(float(value) for value in drawn), self.level)
