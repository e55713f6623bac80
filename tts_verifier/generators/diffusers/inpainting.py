"""Draws the masked part of a picture anew, mostly with the pipeline's inpainting sibling.

The sibling is another class over the same components: no weights are copied and no dtype
changes. Only the scheduler, which has a state, is a copy. Pipelines that no sibling serves
well are left to `blending`.
"""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.generators.diffusers import blend, schedule
from tts_verifier.types import Job, Mask, Repaint


def problem(pipe: Any) -> str:
    """Says why a pipeline cannot repaint, empty if it can."""
    if blend.serves(pipe):
        return schedule.problem(pipe, {})
    try:
        sibling(pipe)
    except UnsupportedError as error:
        return str(error)
    return ""


def sibling(pipe: Any) -> Any:
    """Returns the inpainting pipeline over the same weights.

    Raises:
        UnsupportedError: diffusers has none for this class, or none for these weights.
    """
    from diffusers import AutoPipelineForInpainting

    name, log = type(pipe).__name__, logging.getLogger("diffusers")
    level = log.level
    try:
        with warnings.catch_warnings():
            # About the scheduler's config and an absent safety checker, which the pipeline
            # itself has said already.
            warnings.simplefilter("ignore", FutureWarning)
            log.setLevel(logging.ERROR)
            own = copy.deepcopy(getattr(pipe, "scheduler", None))
            other = AutoPipelineForInpainting.from_pipe(pipe, scheduler=own)
    except (AttributeError, ValueError) as error:
        raise UnsupportedError(
            f"{name} has no inpainting sibling ({error}), and no pipeline was given as inpaint"
        ) from error
    finally:
        log.setLevel(level)
    if why := lacking(other):
        raise UnsupportedError(f"{name} has an inpainting sibling that serves no strategy: {why}")
    other.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return other


def lacking(pipe: Any) -> str:
    """Says what a pipeline's call would have to take to repaint, empty if it takes all."""
    known = inspect.signature(type(pipe).__call__).parameters
    names = [name for name in ("image", "mask_image", "strength") if name not in known]
    return f"{type(pipe).__name__} takes no {', '.join(names)}" if names else ""


def source(job: Job) -> tuple[Repaint, Image.Image]:
    """Returns the proposal and its parent's picture.

    Raises:
        InputError: there is no picture, the mask has another size or is empty, or the
            strength is not in (0, 1].
    """
    proposal = job.proposal
    stored = job.ancestors[0].image if job.ancestors else None
    if not isinstance(proposal, Repaint) or stored is None:
        raise InputError(f"A repaint needs its parent's picture, {proposal} has none.")
    image = stored.load().convert("RGB")
    mask = proposal.mask
    if (mask.width, mask.height) != image.size:
        raise InputError(
            "A mask must have the size of the picture, got "
            f"{mask.width}x{mask.height} for {image.width}x{image.height}."
        )
    if not mask.array().any():
        raise InputError("A mask must let at least one pixel be repainted, got an empty one.")
    if not 0 < proposal.strength <= 1:
        raise InputError(f"strength must be in (0, 1], got {proposal.strength!r}.")
    return proposal, image


def arguments(pipe: Any, sources: list[tuple[Repaint, Image.Image]]) -> dict[str, Any]:
    """Returns what a sibling is told about pictures of one size to be repainted alike."""
    cell = pipe.image_processor.config.vae_scale_factor
    square = np.ones((cell, cell), np.bool_)
    grown = [np.kron(cells(proposal.mask, cell), square) for proposal, _ in sources]
    masks = [m[: image.height, : image.width] for m, (_, image) in zip(grown, sources, strict=True)]
    return {
        "image": [image for _, image in sources],
        "mask_image": [Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks],
        "strength": sources[0][0].strength,
        "width": sources[0][1].width,
        "height": sources[0][1].height,
    }


def cells(mask: Mask, cell: int) -> NDArray[np.bool_]:
    """Grows a mask to latent cells of `cell` pixels: siblings sample masks, and lose thin ones."""
    array = mask.array()
    height, width = array.shape
    padded = np.pad(array, ((0, -height % cell), (0, -width % cell)))
    blocks = padded.reshape(padded.shape[0] // cell, cell, -1, cell)
    found: NDArray[np.bool_] = np.any(blocks, axis=(1, 3))
    return found
