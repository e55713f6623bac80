"""What a candidate took, and the limits of a search."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """What something took; adds up.

    `network_evaluations`: denoiser evaluations of one image, classifier-free guidance
    counted as two. `vae_passes`: encodings and decodings of one image. Seconds are wall
    clock, an image's share of its batch.
    """

    network_evaluations: int = 0
    vae_passes: int = 0
    verifier_calls: int = 0
    draw_seconds: float = 0.0
    judge_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.network_evaluations + other.network_evaluations,
            self.vae_passes + other.vae_passes,
            self.verifier_calls + other.verifier_calls,
            self.draw_seconds + other.draw_seconds,
            self.judge_seconds + other.judge_seconds,
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper limits of a prompt's search, None = no limit; `seconds` of drawing and judging."""

    candidates: int | None = None
    network_evaluations: int | None = None
    verifier_calls: int | None = None
    seconds: float | None = None

    def left(self, candidates: int, cost: Cost) -> Budget:
        """Returns what remains after `candidates` drawings that took `cost`."""

        def rest(limit: float | None, used: float) -> float | None:
            return None if limit is None else max(limit - used, 0)

        seconds = cost.draw_seconds + cost.judge_seconds
        return Budget(
            rest(self.candidates, candidates),  # type: ignore[arg-type]
            rest(self.network_evaluations, cost.network_evaluations),  # type: ignore[arg-type]
            rest(self.verifier_calls, cost.verifier_calls),  # type: ignore[arg-type]
            rest(self.seconds, seconds),
        )

    @property
    def spent(self) -> bool:
        """True when any limit has reached zero."""
        limits = (self.candidates, self.network_evaluations, self.verifier_calls, self.seconds)
        return any(limit is not None and limit <= 0 for limit in limits)
