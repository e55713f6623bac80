"""Spectral evolution: the cross-entropy method in the low wavelet band of the initial noise.

Source: SES as in DiffSynth-Studio (the low band decides the layout); Rubinstein, "The
cross-entropy method" (1999). The variance has a floor, and the first candidate has the noise of
its seed alone.
Cost: population * rounds draws and as many verifier calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tts_verifier.errors import InputError
from tts_verifier.strategies.common.arguments import check_integer, check_items
from tts_verifier.strategies.common.history import best, rounds_done, seeds
from tts_verifier.types import Draw, LowBand, Proposal, Task, Trial

Coefficients = NDArray[np.float64]

FLOOR = 0.05
"""The least variance of a coefficient; it keeps the search from collapsing to one point."""


class Spectral:
    """Draws populations whose low bands follow the best so far; the high bands have one seed.

    Safe to share between threads: it keeps no state.

    Args:
        population: candidates of a round, at least 3.
        rounds: number of populations.
        elite: how many of the best the next round follows, below `population` and at least 2.
        shape: of the low band, (channels, height, width): the latents' shape with its sides
            divided by 2^level.
        level: Haar steps.

    Raises:
        InputError: an argument is out of range.
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
        self.population = check_integer("population", population, 3)
        self.rounds, self.level = check_integer("rounds", rounds), check_integer("level", level)
        self.elite = check_integer("elite", elite, 2)
        if elite >= population:
            raise InputError(
                f"elite must be below population, got {elite} of {population}.", argument="elite"
            )
        shape = check_items("shape", shape, "numbers")
        if len(shape) != 3:
            raise InputError(
                f"shape must be (channels, height, width), got {shape!r}.", argument="shape"
            )
        self.size = math.prod(check_integer("shape", side) for side in shape)

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the first population, then populations that follow the elite."""
        done = rounds_done(history)
        if done == self.rounds:
            return []
        mean, spread = self._fit(history)
        (own,) = seeds(task, 1)
        first = [Draw(own)] if done == 0 else []
        band_seeds = seeds(task, self.population - len(first), purpose=f"band{done}")
        bands = [self._sample_band(mean, spread, seed) for seed in band_seeds]
        return [*first, *(Draw(own, noise=band) for band in bands)]

    def _fit(self, history: Sequence[Trial]) -> tuple[Coefficients, Coefficients]:
        """Returns mean and standard deviation of every coefficient among the elite."""
        scored = [t for t in history if not math.isnan(t.objective)]
        rows = [
            t.proposal.noise.coefficients
            for t in best(scored, len(scored))
            if isinstance(t.proposal, Draw) and isinstance(t.proposal.noise, LowBand)
        ][: self.elite]
        # One band has no variance, so the search starts from normal noise.
        if len(rows) < 2:
            return np.zeros(self.size), np.ones(self.size)
        elite = np.array(rows)
        return elite.mean(axis=0), np.sqrt(elite.var(axis=0) + FLOOR)

    def _sample_band(self, mean: Coefficients, spread: Coefficients, seed: int) -> LowBand:
        band = mean + spread * np.random.default_rng(seed).standard_normal(self.size)
        # Denoisers were trained on normal noise only, so the band gets the norm of such noise.
        band *= math.sqrt(self.size) / float(np.linalg.norm(band))
        return LowBand(tuple(float(value) for value in band), self.level)
