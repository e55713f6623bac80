"""Repaints the masked part of an image, with an inpainting pipeline or by blending latents.

diffusers has an inpainting class for many families, over the same components: no weights are
copied and no dtype changes. Only the scheduler, which has a state, is a copy.

Blending repaints with the text-to-image pipeline itself: after each step the latents outside the
mask are replaced by the parent's, noised to the same level (Blended Latent Diffusion, Avrahami et
al., 2023). diffusers' inpainting classes do the same for weights that were not trained for
inpainting. Blending serves families without such a class, and Stable Diffusion 3, whose class
(diffusers 0.42) accepts only latents of 16 channels and decodes without the VAE's shift.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.generators.paste import paste
from tts_verifier.types import Job, Mask, Repaint, Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from tts_verifier.generators.diffusers.schedule import NoiseLevel

BLENDING_PIPELINES: Final = (
    "StableDiffusion3Pipeline",
    "PixArtSigmaPipeline",
    "PixArtAlphaPipeline",
)
"""Pipelines that repaint by blending: their latents are the VAE's own, shifted and scaled."""

_CORRECTED: Final[Mapping[str, Mapping[str, Any]]] = {
    "StableDiffusionInpaintPipeline": {"steps_offset": 1, "skip_prk_steps": True},
    "StableDiffusionPAGInpaintPipeline": {"steps_offset": 1, "clip_sample": False},
}
"""What these classes (diffusers 0.42) correct in a scheduler's config, with a warning."""


# -- what can repaint ------------------------------------------------------------------------


def repaints_by_blending(pipe: Any) -> bool:
    """Says whether a pipeline repaints by blending, rather than with an inpainting class."""
    return type(pipe).__name__ in BLENDING_PIPELINES


def inpainting_problem(pipe: Any) -> str:
    """Says why diffusers has no inpainting pipeline over these components, empty if it has.

    It builds no pipeline.
    """
    name, kind = type(pipe).__name__, _inpainting_class(pipe)
    if kind is None:
        return (
            f"{name} has no inpainting sibling (diffusers knows none for this class), and no "
            "pipeline was given as inpaint"
        )
    if missing := _missing_components(kind, pipe):
        return (
            f"{name} has no inpainting sibling ({kind.__name__} needs {', '.join(missing)}), and "
            "no pipeline was given as inpaint"
        )
    if why := missing_arguments(kind):
        return f"{name} has an inpainting sibling that serves no strategy: {why}"
    return ""


def missing_arguments(kind: type) -> str:
    """Says what the call of a pipeline class lacks for repainting, empty if it lacks nothing."""
    parameters = inspect.signature(kind.__call__).parameters
    names = [name for name in ("image", "mask_image", "strength") if name not in parameters]
    return f"{kind.__name__} takes no {', '.join(names)}" if names else ""


def inpainting_pipeline(pipe: Any) -> Any:
    """Returns diffusers' inpainting pipeline over the same components.

    Raises:
        UnsupportedError: diffusers has none for this class, or none for these components.
    """
    from diffusers import AutoPipelineForInpainting

    if why := inpainting_problem(pipe):
        raise UnsupportedError(why)
    kind = _inpainting_class(pipe)
    scheduler: Any = copy.deepcopy(getattr(pipe, "scheduler", None))
    options: dict[str, Any] = {"scheduler": scheduler}
    # diffusers would warn of what the user saw when the pipeline itself was built. To silence it
    # would change the filters and levels of the whole process, so nothing is left to warn of.
    for name, value in (_CORRECTED.get(kind.__name__, {}) if scheduler else {}).items():
        if scheduler.config.get(name, value) != value:
            scheduler.register_to_config(**{name: value})
    takes_checker = "requires_safety_checker" in inspect.signature(kind.__init__).parameters
    if takes_checker and getattr(pipe, "safety_checker", None) is None:
        options["requires_safety_checker"] = False
    try:
        sibling = AutoPipelineForInpainting.from_pipe(pipe, **options)
    except (AttributeError, ValueError) as error:
        raise UnsupportedError(
            f"{type(pipe).__name__} has no inpainting sibling ({error}), and no pipeline was given "
            "as inpaint"
        ) from error
    sibling.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return sibling


def _inpainting_class(pipe: Any) -> Any:
    """Returns the class that `AutoPipelineForInpainting.from_pipe` would use, None if none."""
    from diffusers.pipelines import auto_pipeline

    name = type(pipe).__name__
    tasks: Any = auto_pipeline.SUPPORTED_TASKS_MAPPINGS
    for classes in tasks:
        for family, kind in classes.items():
            if kind.__name__ == name:
                return auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING.get(family)
    return None


def _missing_components(kind: Any, pipe: Any) -> list[str]:
    """Returns the components that an inpainting class requires and a pipeline does not have."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.name != "self"]
    optional = getattr(kind, "_optional_components", [])
    return [name for name in required if name not in optional and not hasattr(pipe, name)]


# -- what is repainted -----------------------------------------------------------------------


def repaint_source(job: Job) -> tuple[Repaint, Image.Image]:
    """Returns the proposal of a job and its parent's image, RGB.

    Raises:
        InputError: there is no image, the mask is empty or of another size, or the strength is
            not in (0, 1].
    """
    proposal = job.proposal
    stored = job.ancestors[0].image if job.ancestors else None
    if not isinstance(proposal, Repaint) or stored is None:
        raise InputError(f"A repaint needs its parent's image, {proposal} has none.")
    image = stored.load().convert("RGB")
    mask = proposal.mask
    if (mask.width, mask.height) != image.size:
        raise InputError(
            "A mask must have the size of the image, got "
            f"{mask.width}x{mask.height} for {image.width}x{image.height}."
        )
    if not mask.array().any():
        raise InputError("A mask must let at least one pixel be repainted, got an empty one.")
    if not 0 < proposal.strength <= 1:
        raise InputError(f"strength must be in (0, 1], got {proposal.strength!r}.")
    return proposal, image


def inpainting_arguments(
    pipe: Any, sources: Sequence[tuple[Repaint, Image.Image]]
) -> dict[str, Any]:
    """Returns the arguments of an inpainting pipeline for a batch.

    Args:
        pipe: the inpainting pipeline.
        sources: proposals of one strength, with their parents' images, of one size.
    """
    cell = pipe.image_processor.config.vae_scale_factor
    masks = [grown_to_cells(proposal.mask, cell).array() for proposal, _ in sources]
    return {
        "image": [image for _, image in sources],
        "mask_image": [Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks],
        "strength": sources[0][0].strength,
        "width": sources[0][1].width,
        "height": sources[0][1].height,
    }


def latent_cells(mask: Mask, cell: int) -> NDArray[np.bool_]:
    """Returns which latent cells a mask touches, (h, w) bool.

    Inpainting pipelines sample a mask at one pixel of every cell, and so lose thin ones.

    Args:
        mask: of the image.
        cell: pixels of a cell's side.
    """
    array = mask.array()
    height, width = array.shape
    padded = np.pad(array, ((0, -height % cell), (0, -width % cell)))
    blocks = padded.reshape(padded.shape[0] // cell, cell, -1, cell)
    touched: NDArray[np.bool_] = np.any(blocks, axis=(1, 3))
    return touched


def grown_to_cells(mask: Mask, cell: int) -> Mask:
    """Returns a mask grown to whole latent cells: the part of the image that is generated anew.

    Args:
        mask: of the image.
        cell: pixels of a cell's side.
    """
    grown = np.kron(latent_cells(mask, cell), np.ones((cell, cell), np.bool_))
    # The image's edge may cut the last cells, which `latent_cells` padded to their full side.
    return Mask.of(grown[: mask.height, : mask.width])


def with_parents_pixels(sample: Sample, cell: int) -> Sample:
    """Returns a repainted sample with exactly the parent's pixels where no cell was repainted."""
    if sample.image is None:
        return sample
    proposal, parent = repaint_source(sample.job)
    # The mask is grown as it was for the pipeline: a cell that is new in half would show a seam,
    # and fewer repaints would be better than their parents.
    repainted = grown_to_cells(proposal.mask, cell)
    return replace(sample, image=paste(parent, sample.image, repainted))


# -- blending --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ParentLatents:
    """The latents of the parents' images, which stay outside the masks."""

    clean: torch.Tensor
    """The parents' latents, (B, C, h, w)."""
    noise: torch.Tensor
    """N(0, 1) noise of each row's own seed, (B, C, h, w)."""
    mask: torch.Tensor
    """1 where the latents are generated anew, (B, 1, h, w)."""

    def at(self, level: NoiseLevel) -> torch.Tensor:
        """Returns the parents' latents at a noise level."""
        noisy: torch.Tensor = level.a * self.clean + level.s * self.noise
        return noisy

    def restore(self, latents: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """Returns `latents` where the mask is 1, and the parents' latents elsewhere."""
        # In float32: 16 bits would round the parents' latents anew at every step.
        mixed = self.mask * latents.float() + (1 - self.mask) * self.at(level)
        return mixed.to(latents.dtype)


def encode_parents(
    pipe: Any,
    images: Sequence[Image.Image],
    *,
    cells: Sequence[NDArray[np.bool_]],
    noise: torch.Tensor,
    device: str,
) -> ParentLatents:
    """Encodes the parents' images for blending.

    Args:
        pipe: the pipeline that generated them.
        images: RGB, of the size that the pipeline generates.
        cells: for each image, which latent cells to repaint, (h, w).
        noise: N(0, 1), (B, C, h, w).
        device: where the pipeline computes. Ask the pipeline, not its VAE: the weights of an
            offloaded VAE are there only while it runs.

    Raises:
        InputError: the images have another size.
    """
    import torch

    vae, config = pipe.vae, pipe.vae.config
    pixels = pipe.image_processor.preprocess(list(images))
    with torch.no_grad():
        # The mode, because a sample would draw on the global random state.
        encoded = vae.encode(pixels.to(device, vae.dtype)).latent_dist.mode().float()
    # Only some families have a shift, and a config may state it as None.
    shift = getattr(config, "shift_factor", None) or 0.0
    clean = (encoded - shift) * config.scaling_factor
    if clean.shape != noise.shape:
        raise InputError(
            f"{type(pipe).__name__} generates latents of shape {tuple(noise.shape[1:])}, an image "
            f"of {images[0].width}x{images[0].height} has {tuple(clean.shape[1:])}. Repaint images "
            "of the size that it generates."
        )
    mask = torch.from_numpy(np.stack(cells)[:, None]).to(clean)
    return ParentLatents(clean, noise.float().to(clean.device), mask)


def first_repainting_step(steps: int, strength: float) -> int:
    """Returns the step that a repaint of some strength starts from, as diffusers counts."""
    # The formula of `get_timesteps` in diffusers' inpainting pipelines, rounding included.
    return int(max(steps - steps * strength, 0))
