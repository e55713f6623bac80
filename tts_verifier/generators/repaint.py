"""Draws the masked part of a picture anew with the pipeline's inpainting sibling.

The sibling is another class over the same components: no weights are copied and no dtype
changes. Only the scheduler, which has a state, is a copy.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.types import Job, Mask, Repaint


def problem(pipe: Any) -> str:
    """Says why a pipeline cannot repaint, empty if it can."""
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

    name = type(pipe).__name__
    try:
        with warnings.catch_warnings():
            # About the scheduler's config, which the pipeline itself has said already.
            warnings.simplefilter("ignore", FutureWarning)
            scheduler = copy.deepcopy(pipe.scheduler)
            other = AutoPipelineForInpainting.from_pipe(pipe, scheduler=scheduler)
    except (AttributeError, ValueError) as error:
        raise UnsupportedError(f"{name} has no inpainting sibling: {error}") from error
    if _is_sd3(other) and pipe.transformer.config.in_channels not in (16, 33):
        raise UnsupportedError(
            f"{name} has an inpainting sibling for latents of 16 channels only, these weights "
            f"have {pipe.transformer.config.in_channels}."
        )
    other.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return other


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
    masks = [_snapped(proposal.mask, cell) for proposal, _ in sources]
    return {
        "image": [image for _, image in sources],
        "mask_image": [Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks],
        "strength": sources[0][0].strength,
        "width": sources[0][1].width,
        "height": sources[0][1].height,
    }


def decode(pipe: Any, **call: Any) -> tuple[Any, Any]:
    """Calls a sibling; returns (B, 3, H, W) in [0, 1] and its safety checker's verdicts."""
    import torch

    if not _is_sd3(pipe):
        out = pipe(output_type="pt", **call)
        return out.images, getattr(out, "nsfw_content_detected", None)
    # diffusers 0.42's StableDiffusion3InpaintPipeline decodes without the VAE's shift.
    latents = pipe(output_type="latent", **call).images
    config = pipe.vae.config
    latents = latents / config.scaling_factor + config.shift_factor
    with torch.no_grad():
        pixels = pipe.vae.decode(latents, return_dict=False)[0]
    return pipe.image_processor.postprocess(pixels, output_type="pt"), None


def paste(old: Image.Image, new: Image.Image, mask: Mask) -> Image.Image:
    """Returns `new` where the mask is True and exactly `old` elsewhere."""
    pixels = np.where(mask.array()[:, :, None], np.asarray(new), np.asarray(old))
    return Image.fromarray(pixels)


def _is_sd3(pipe: Any) -> bool:
    return type(pipe).__name__ == "StableDiffusion3InpaintPipeline"


def _snapped(mask: Mask, cell: int) -> NDArray[np.bool_]:
    """Grows a mask to whole latent cells: siblings sample masks, and lose thin ones."""
    array = mask.array()
    height, width = array.shape
    padded = np.pad(array, ((0, -height % cell), (0, -width % cell)))
    cells = padded.reshape(padded.shape[0] // cell, cell, -1, cell).any(axis=(1, 3))
    grown: NDArray[np.bool_] = np.kron(cells, np.ones((cell, cell), np.bool_))[:height, :width]
    return grown
