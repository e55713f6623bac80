"""The cost of a candidate, and the budget of a search."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of an image or a verdict. Costs add up.

    Seconds are wall-clock seconds: an image's share of its batch.
    """

    network_evaluations: int = 0
    """Denoiser evaluations; a step with classifier-free guidance counts as two."""
    vae_passes: int = 0
    """Encodings and decodings by the VAE."""
    verifier_calls: int = 0
    """Verdicts."""
    generate_seconds: float = 0.0
    """Time in the generator. The runner measures it; a generator leaves it at zero."""
    verify_seconds: float = 0.0
    """Time in the verifier, not in the held-out judge. The runner measures it."""

    @property
    def seconds(self) -> float:
        """Time in the generator and the verifier."""
        return self.generate_seconds + self.verify_seconds

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.network_evaluations + other.network_evaluations,
            self.vae_passes + other.vae_passes,
            self.verifier_calls + other.verifier_calls,
            self.generate_seconds + other.generate_seconds,
            self.verify_seconds + other.verify_seconds,
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """The upper limits of the search for one prompt; None = no limit. Safe between threads."""

    candidates: int | None = None
    """Generated images, unfinished ones included; looks are not counted."""
    network_evaluations: int | None = None
    """Denoiser evaluations, as in `Cost`."""
    verifier_calls: int | None = None
    """Verdicts."""
    seconds: float | None = None
    """Time in the generator and the verifier."""

    def left(self, candidates: int, cost: Cost) -> Budget:
        """Returns what remains after so many candidates at this cost."""

        def rest(limit: float | None, used: float) -> float | None:
            # Rounding to whole steps and batches under way may exceed a limit.
            return None if limit is None else max(limit - used, 0)

        return Budget(
            rest(self.candidates, candidates),  # type: ignore[arg-type]
            rest(self.network_evaluations, cost.network_evaluations),  # type: ignore[arg-type]
            rest(self.verifier_calls, cost.verifier_calls),  # type: ignore[arg-type]
            rest(self.seconds, cost.seconds),
        )

    @property
    def spent(self) -> bool:
        """Whether any limit has reached zero."""
        limits = (self.candidates, self.network_evaluations, self.verifier_calls, self.seconds)
        return any(limit is not None and limit <= 0 for limit in limits)
