"""Prompts, masks and the kinds of proposal: what to generate next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tts_verifier.errors import InputError

Setting = str | int | float | bool | None
"""A value that is one cell of the log."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of a run."""

    id: str
    """Unique within a run."""
    text: str
    """What the user asked for."""
    category: str = ""
    """A word by which reports group prompts."""
    repeat: int = field(default=0, compare=False)
    """How many earlier prompts of the run have the same text. Seeds and trial ids derive from it,
    so that each of them has images of its own."""


@dataclass(frozen=True, slots=True)
class Near:
    """Initial noise near that of a parent.

    It is sqrt(1 - radius^2) times the parent's noise plus radius times fresh noise, which leaves
    the variance at 1. With radius 1 nothing of the parent's noise remains.
    """

    parent: str
    """The parent's trial id."""
    radius: float
    """In (0, 1]."""


@dataclass(frozen=True, slots=True)
class LowBand:
    """Initial noise from the seed, with its low-frequency wavelet band replaced."""

    coefficients: tuple[float, ...]
    """The band after `level` Haar steps, channels first, row-major."""
    level: int
    """How many Haar steps lead to the band."""


@dataclass(frozen=True, slots=True)
class Mask:
    """A boolean image as a value: hashable, comparable, exact. True = may be repainted."""

    height: int
    """In pixels."""
    width: int
    """In pixels."""
    bits: bytes
    """Eight pixels a byte, row-major, as `numpy.packbits` packs them."""

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
        # `packbits` fills the last byte with zeros; `count` leaves them out.
        flat = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.height * self.width)
        return flat.reshape(self.height, self.width).astype(np.bool_)


@dataclass(frozen=True, slots=True)
class Draw:
    """Denoises an image from noise."""

    seed: int
    """Seed of the noise, in [0, 2^63)."""
    until: float = 1.0
    """The fraction of the steps to take, in (0, 1]."""
    noise: Near | LowBand | None = None
    """What determines the noise besides the seed; None = nothing."""
    rewrite: str = ""
    """The trial id of the `Rewrite` whose text takes the prompt's place; "" = none."""
    pace: float = 1.0
    """The share of the generator's steps that is used for the whole denoising, in (0, 1]. Below 1
    the image is a draft: finished, but coarse."""
    cached: bool = False
    """For a draft: takes all steps, but evaluates the network only in the share `pace` of them and
    extrapolates its output in the others."""


@dataclass(frozen=True, slots=True)
class Continue:
    """Continues a partly denoised parent."""

    parent: str
    """The parent's trial id."""
    until: float
    """The fraction of the steps to reach, in (0, 1]."""
    seed: int
    """Seed of the fresh noise."""
    renoise: float = 0.0
    """The fraction of the steps to go back first, with fresh noise."""
    eta: float = 0.0
    """The share of fresh noise added at every step; 0 = deterministic."""


@dataclass(frozen=True, slots=True)
class Repaint:
    """Generates the masked part of a finished parent again."""

    parent: str
    """The parent's trial id."""
    mask: Mask
    """The part to generate again, in pixels. A generator may grow it to the cells of its latents;
    outside of these the image is the parent's, exactly."""
    seed: int
    """Seed of the fresh noise."""
    strength: float = 1.0
    """The fraction of the steps that is taken again, in (0, 1]."""


@dataclass(frozen=True, slots=True)
class Look:
    """Generates nothing: diagnoses an image that so far has only a quick score."""

    parent: str
    """The parent's trial id."""


@dataclass(frozen=True, slots=True)
class Compare:
    """Generates nothing: compares two finished images, in both orders.

    The objective of its trial is how strongly the parent is preferred, in [0, 1]; 1/2 = a tie.
    """

    parent: str
    """The trial id of one image."""
    rival: str
    """The trial id of the other."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Generates nothing: has the prompt rewritten according to the verdict on an image.

    The reply of its trial is the new text. Images that are drawn from it are still verified
    against the original prompt.
    """

    parent: str
    """The trial id of the image."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """In `needs` and `supports`: draws from a rewritten prompt, `Job.text`."""


@dataclass(frozen=True, slots=True)
class Drafts:
    """In `needs` and `supports`: draws with a `pace` below 1."""


@dataclass(frozen=True, slots=True)
class CachedDrafts:
    """In `needs` and `supports`: drafts that are `cached`."""


Proposal = Draw | Continue | Repaint | Look | Compare | Rewrite
VERIFIES_ONLY: tuple[type, ...] = (Look, Compare, Rewrite)
"""The kinds that generate nothing; every run can serve them, with any generator."""
KINDS: Mapping[str, type] = {
    "draw": Draw,
    "continue": Continue,
    "repaint": Repaint,
    "look": Look,
    "compare": Compare,
    "rewrite": Rewrite,
}
"""The kinds of proposal by their names in the log."""


def kind_of(proposal: Proposal) -> str:
    """Returns the name of a proposal's kind in the log."""
    # Not `isinstance`: the log could not restore the extra fields of a subclass.
    return next(name for name, cls in KINDS.items() if type(proposal) is cls)


def parent_of(proposal: Proposal) -> str | None:
    """Returns the id of the trial that a proposal starts from, or None."""
    if isinstance(proposal, Draw):
        near = proposal.noise.parent if isinstance(proposal.noise, Near) else None
        return proposal.rewrite or near
    return proposal.parent
