"""What the user asked for, and what to draw next: prompts, masks and the four kinds of proposal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tts_verifier.errors import InputError

Setting = str | int | float | bool | None
"""A value that is one cell of the log."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the user asked for; `id` is unique within a run, `category` is for reports."""

    id: str
    text: str
    category: str = ""


@dataclass(frozen=True, slots=True)
class Near:
    """Initial noise near a parent's: `parent` is a trial id, `radius` in (0, 1].

    The noise is sqrt(1 - radius^2) * parent's + radius * fresh, so its norm is kept in
    expectation and radius 1 forgets the parent.
    """

    parent: str
    radius: float


@dataclass(frozen=True, slots=True)
class LowBand:
    """Initial noise of the seed with its low-frequency wavelet band replaced.

    `coefficients`: the band after `level` Haar steps, channels first, row-major.
    """

    coefficients: tuple[float, ...]
    level: int


@dataclass(frozen=True, slots=True)
class Mask:
    """A boolean image as a value: hashable, comparable, exact. True = may be repainted."""

    height: int
    width: int
    bits: bytes

    @classmethod
    def of(cls, array: NDArray[np.bool_]) -> Mask:
        """Packs an (H, W) bool array."""
        if array.ndim != 2 or array.dtype != np.bool_:
            raise InputError(
                f"A mask must be a bool array of shape (H, W), got {array.dtype} {array.shape}."
            )
        return cls(array.shape[0], array.shape[1], np.packbits(array).tobytes())

    def array(self) -> NDArray[np.bool_]:
        """Returns the (H, W) bool array."""
        flat = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.height * self.width)
        return flat.reshape(self.height, self.width).astype(np.bool_)


@dataclass(frozen=True, slots=True)
class Draw:
    """From noise, up to the fraction `until` of the steps. `noise`: None = the seed's own."""

    seed: int
    until: float = 1.0
    noise: Near | LowBand | None = None


@dataclass(frozen=True, slots=True)
class Continue:
    """Carries a partly denoised `parent` on, up to the fraction `until` of the steps.

    First goes back by the fraction `renoise`, with fresh noise of `seed`; then adds the
    share `eta` of fresh noise at every step (0 = deterministic).
    """

    parent: str
    until: float
    seed: int
    renoise: float = 0.0
    eta: float = 0.0


@dataclass(frozen=True, slots=True)
class Repaint:
    """Draws the masked part of a finished `parent` anew; `strength` in (0, 1]."""

    parent: str
    mask: Mask
    seed: int
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """Draws nothing: diagnoses in full what was only scored so far."""

    parent: str


Proposal = Draw | Continue | Repaint | Look
KINDS: Mapping[str, type] = {
    "draw": Draw,
    "continue": Continue,
    "repaint": Repaint,
    "look": Look,
}


def kind_of(proposal: Proposal) -> str:
    """Returns the proposal's kind as the log writes it."""
    return next(name for name, cls in KINDS.items() if type(proposal) is cls)


def parent_of(proposal: Proposal) -> str | None:
    """Returns the id of the trial that a proposal starts from, or None."""
    if isinstance(proposal, Draw):
        return proposal.noise.parent if isinstance(proposal.noise, Near) else None
    return proposal.parent
