"""FK steering: particles resampled by potentials of their previews (sequential Monte Carlo).

Source: Singhal et al., "A general framework for inference-time scaling and steering of
diffusion models" (arXiv 2501.06848), potentials diff, max and add; systematic resampling
after Kitagawa (1996). Weights are kept as logarithms.
Cost: n drawings, and n verifier calls a stop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tts_verifier.errors import InputError
from tts_verifier.strategies.shared import positive, rising, rounds, seeds, usable, within
from tts_verifier.types import Continue, Draw, Proposal, Task, Trial

POTENTIALS = ("diff", "max", "add")

Weights = NDArray[np.float64]


class FKSteering:
    """Carries `n` particles on with fresh noise, resampled where their weights are uneven.

    The log-weight of a particle grows at every stop by `strength` times: its objective less
    its parent's (`diff`), the highest of its line (`max`), or the sum over its line (`add`).
    When the effective sample size is below n / 2 the particles are resampled and the weights
    start anew. An unusable score has no weight, unless all are unusable.

    Args:
        n: particles.
        potential: diff, max or add.
        strength: positive; how sharply the objective weighs.
        stops: fractions of the steps at which previews are judged, rising to 1.
        eta: the share of fresh noise at every step, in (0, 1], without which particles of
            one parent would stay the same.

    Raises:
        InputError: an argument is not usable.
    """

    needs: frozenset[type] = frozenset({Draw, Continue})

    def __init__(
        self,
        n: int = 4,
        potential: str = "diff",
        *,
        strength: float = 10.0,
        stops: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0),
        eta: float = 0.5,
    ) -> None:
        if potential not in POTENTIALS:
            raise InputError(
                f"potential must be one of {POTENTIALS}, got {potential!r}.", argument="potential"
            )
        self.n, self.potential = positive("n", n, 2), potential
        self.strength = within(
            "strength", strength, lambda s: 0 < s < math.inf, rule="finite and positive"
        )
        self.stops = rising("stops", stops)
        self.eta = within("eta", eta, lambda e: 0 < e <= 1, rule="in (0, 1]")

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the particles, then carries the resampled ones on to the next stop."""
        level = rounds(history)
        if level == len(self.stops):
            return []
        if level == 0:
            return [Draw(seed, self.stops[0]) for seed in seeds(task, self.n)]
        weights = self._weights(history)
        parents = usable([t for t in history if t.round == history[-1].round])
        if not parents:
            return []
        logs = np.array([weights[t.id] for t in parents])
        if len(parents) < self.n or uneven(logs):
            (seed,) = seeds(task, 1, purpose=f"resample{level}")
            start = float(np.random.default_rng(seed).random())
            parents = [parents[i] for i in systematic(logs, self.n, start=start)]
        fresh = seeds(task, self.n, purpose=f"particle{level}")
        return [
            Continue(parent.id, self.stops[level], seed, eta=self.eta)
            for parent, seed in zip(parents, fresh, strict=True)
        ]

    def _weights(self, history: Sequence[Trial]) -> dict[str, float]:
        """Returns the log-weights of the last round's particles by id."""
        lines: dict[str, list[float]] = {}
        weights: dict[str, float] = {}
        for number in sorted({t.round for t in history}):
            row = [t for t in history if t.round == number]
            before = usable([t for t in history if t.round == number - 1])
            logs = np.array([weights[t.id] for t in before])
            anew = not before or len(before) < self.n or uneven(logs)
            for trial in row:
                line = [*lines.get(trial.parent_id or "", []), trial.objective]
                held = 0.0 if anew else weights.get(trial.parent_id or "", 0.0)
                lines[trial.id] = line
                weights[trial.id] = held + self.strength * self._potential(line)
        return weights

    def _potential(self, line: Sequence[float]) -> float:
        """Returns the potential of a line of objectives, root first; -inf if unusable."""
        known = [value for value in line if not math.isnan(value)]
        if math.isnan(line[-1]):
            return -math.inf
        if self.potential == "diff":
            return known[-1] - (known[-2] if len(known) > 1 else 0.0)
        return max(known) if self.potential == "max" else sum(known)


def shares(logs: Weights) -> Weights:
    """Returns log-weights as shares that add up to 1, equal ones if all are -inf."""
    top = float(logs.max())
    weights = np.exp(logs - top) if math.isfinite(top) else np.ones_like(logs)
    normed: Weights = weights / weights.sum()
    return normed


def uneven(logs: Weights) -> bool:
    """Says whether the effective sample size is below half of the particles."""
    return bool(1 / np.sum(shares(logs) ** 2) < len(logs) / 2)


def systematic(logs: Weights, count: int, *, start: float) -> list[int]:
    """Returns `count` indices, each about count * its share times; `start` in [0, 1)."""
    edges = np.cumsum(shares(logs))
    points = (start + np.arange(count)) / count
    return [min(int(i), len(logs) - 1) for i in np.searchsorted(edges, points, side="right")]
