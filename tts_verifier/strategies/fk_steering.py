"""FK steering: resamples particles by potentials of their previews (sequential Monte Carlo).

Source: Singhal et al., "A general framework for inference-time scaling and steering of
diffusion models" (arXiv 2501.06848), potentials diff, max and add; systematic resampling
after Kitagawa (1996). Weights are logarithms. Fewer particles from stop to stop (a funnel), and a
strength that grows with progress, because early previews say little: arXiv 2508.12361.
Cost: n draws, and n verifier calls per stop; with a funnel of `keep`, n * keep^k of both after the
stop number k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tts_verifier.errors import InputError
from tts_verifier.strategies.common.arguments import check_integer, check_number, check_stops
from tts_verifier.strategies.common.history import propose_at_stops, seeds, unfinished
from tts_verifier.types import Continue, Draw, Proposal, Task, Trial

Potential = Literal["diff", "max", "add"]

Weights = NDArray[np.float64]


class FKSteering:
    """Continues `n` particles with fresh noise and resamples them when their weights are uneven.

    Safe to share between threads: it keeps no state.

    At every stop the log-weight of a particle grows by `strength` times its potential: its
    objective minus its parent's (`diff`), the highest objective of its lineage (`max`), or the sum
    over its lineage (`add`). When the effective sample size is below half of the particles, or
    fewer are kept, they are resampled and all weights restart at 0. A particle with an unusable
    score has no weight, unless all scores are unusable.

    Args:
        n: particles, at least 2.
        potential: diff, max or add.
        strength: positive; how strongly the objective weighs.
        stops: fractions of the denoising steps at which previews are verified, rising to 1.
        eta: share of fresh noise in every step, in (0, 1]; without it, particles with the same
            parent would remain identical.
        keep: share of the particles that is kept at every stop, in (0, 1], rounded up.
        ramp: not negative; at a stop, the strength is `strength` times the stop to this power:
            0 = constant, 1 = growing in proportion to the steps taken.

    Raises:
        InputError: an argument is out of range.
    """

    needs: frozenset[type] = frozenset({Draw, Continue})

    def __init__(
        self,
        n: int = 4,
        potential: Potential = "diff",
        *,
        strength: float = 10.0,
        stops: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0),
        eta: float = 0.5,
        keep: float = 1.0,
        ramp: float = 0.0,
    ) -> None:
        if potential not in get_args(Potential):
            raise InputError(
                f"potential must be one of {', '.join(get_args(Potential))}, got {potential!r}.",
                argument="potential",
            )
        self.n, self.potential = check_integer("n", n, 2), potential
        self.strength = check_number(
            "strength", strength, lambda s: 0 < s < math.inf, rule="finite and positive"
        )
        self.stops = check_stops("stops", stops)
        self.eta = check_number("eta", eta, lambda e: 0 < e <= 1, rule="in (0, 1]")
        self.keep = check_number("keep", keep, lambda k: 0 < k <= 1, rule="in (0, 1]")
        self.ramp = check_number(
            "ramp", ramp, lambda r: 0 <= r < math.inf, rule="finite and not negative"
        )

    @property
    def most(self) -> int:
        """Finished images at most."""
        return self._count(len(self.stops) - 1)

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the particles, then continues the resampled ones to the next stop."""

        def proceed(level: int, particles: list[Trial]) -> list[Proposal]:
            weights = self.log_weights(history)
            logs = np.array([weights[t.id] for t in particles])
            count = self._count(level)
            if self._resamples(particles, logs, level):
                (seed,) = seeds(task, 1, purpose=f"resample{level}")
                start = float(np.random.default_rng(seed).random())
                particles = [particles[i] for i in systematic_indices(logs, count, start=start)]
            fresh = seeds(task, count, purpose=f"particle{level}")
            return [
                Continue(particle.id, self.stops[level], seed, eta=self.eta)
                for particle, seed in zip(particles, fresh, strict=True)
            ]

        return propose_at_stops(task, history, n=self.n, stops=self.stops, proceed=proceed)

    def log_weights(self, history: Sequence[Trial]) -> dict[str, float]:
        """Returns the log-weight of every particle of the history, by trial id."""
        lineages: dict[str, list[float]] = {}
        weights: dict[str, float] = {}
        for number in sorted({t.round for t in history}):
            before = unfinished([t for t in history if t.round == number - 1])
            logs = np.array([weights[t.id] for t in before])
            restart = self._resamples(before, logs, number)
            strength = self.strength * self.stops[number] ** self.ramp
            for trial in (t for t in history if t.round == number):
                parent = trial.parent_id or ""
                lineages[trial.id] = [*lineages.get(parent, []), trial.objective]
                # Resampled particles carry their weight in their number of copies.
                base = 0.0 if restart else weights.get(parent, 0.0)
                weights[trial.id] = base + strength * self._potential(lineages[trial.id])
        return weights

    def _count(self, level: int) -> int:
        """Returns the number of particles that are denoised up to a stop."""
        # Rounded first: 0.1 * 10 particles must not become 2.
        return max(math.ceil(round(self.n * self.keep**level, 9)), 1)

    def _resamples(self, particles: Sequence[Trial], logs: Weights, level: int) -> bool:
        """Returns whether the particles are resampled before they proceed to a stop.

        They are if some failed, if fewer are kept, or if their weights are uneven.
        """
        changed = len(particles) != self._count(level)
        failed = level > 0 and len(particles) < self._count(level - 1)
        return changed or failed or is_uneven(logs)

    def _potential(self, lineage: Sequence[float]) -> float:
        """Returns the potential of a lineage of objectives, root first; -inf if unusable."""
        usable = [value for value in lineage if not math.isnan(value)]
        if math.isnan(lineage[-1]):
            return -math.inf
        if self.potential == "diff":
            return usable[-1] - (usable[-2] if len(usable) > 1 else 0.0)
        return max(usable) if self.potential == "max" else sum(usable)


def normalised(logs: Weights) -> Weights:
    """Returns weights that sum to 1 from log-weights; equal weights if all are -inf."""
    top = float(logs.max())
    # Subtracting the maximum keeps exp from overflowing.
    weights = np.exp(logs - top) if math.isfinite(top) else np.ones_like(logs)
    result: Weights = weights / weights.sum()
    return result


def is_uneven(logs: Weights) -> bool:
    """Returns whether the effective sample size is below half the number of particles."""
    return bool(1 / np.sum(normalised(logs) ** 2) < len(logs) / 2)


def systematic_indices(logs: Weights, count: int, *, start: float) -> list[int]:
    """Draws `count` indices by systematic resampling; index i comes about count * weight i times.

    Args:
        logs: log-weights.
        count: indices to draw.
        start: a uniform random number in [0, 1).
    """
    edges = np.cumsum(normalised(logs))
    points = (start + np.arange(count)) / count
    # The last edge may be slightly below 1 by rounding.
    return [min(int(i), len(logs) - 1) for i in np.searchsorted(edges, points, side="right")]
