"""Repaints with the text-to-image pipeline itself: what must stay is put back at every step.

After each step the latents outside the mask are replaced by the parent's at the same level of
noise (Blended Latent Diffusion, Avrahami et al., 2023), which is what diffusers' siblings do
with weights that were not made for inpainting. It serves pipelines without a sibling, and
Stable Diffusion 3, whose sibling (diffusers 0.42) takes only latents of 16 channels and
decodes without the VAE's shift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tts_verifier.errors import InputError
from tts_verifier.generators.diffusers.placement import device_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray
    from PIL import Image

SERVED: Final = ("StableDiffusion3Pipeline", "PixArtSigmaPipeline", "PixArtAlphaPipeline")
"""Pipelines whose latents are the VAE's own, shifted and scaled: what is tested."""


def serves(pipe: Any) -> bool:
    """Says whether a pipeline is to be repainted here."""
    return type(pipe).__name__ in SERVED


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What stays of the parents.

    `clean`: their latents. `noise`: each row's own. Both (B, C, h, w). `mask`: (B, 1, h, w),
    1 where the latents are drawn anew.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor

    def at(self, level: tuple[float, float]) -> torch.Tensor:
        """Returns the parents' latents at a level of noise."""
        noisy: torch.Tensor = level[0] * self.clean + level[1] * self.noise
        return noisy

    def put_back(self, latents: torch.Tensor, level: tuple[float, float]) -> torch.Tensor:
        """Returns the latents where the mask is 1, the parents' elsewhere."""
        mixed = self.mask * latents.float() + (1 - self.mask) * self.at(level)
        return mixed.to(latents.dtype)


def kept(
    pipe: Any,
    images: Sequence[Image.Image],
    *,
    cells: Sequence[NDArray[np.bool_]],
    noise: torch.Tensor,
) -> Kept:
    """Encodes the parents' pictures.

    Args:
        pipe: theirs.
        images: RGB, of the size that the pipeline draws.
        cells: masks on the grid of the latents.
        noise: (B, C, h, w), N(0, 1).

    Raises:
        InputError: the pictures are not of that size.
    """
    import torch

    vae, config = pipe.vae, pipe.vae.config
    pixels = pipe.image_processor.preprocess(list(images))
    with torch.no_grad():
        # An offloaded VAE is where it computes only once its hooks have brought it there.
        found = vae.encode(pixels.to(device_of(pipe), vae.dtype)).latent_dist.mode().float()
    clean = (found - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
    if clean.shape != noise.shape:
        raise InputError(
            f"{type(pipe).__name__} draws latents of shape {tuple(noise.shape[1:])}, a picture of "
            f"{images[0].width}x{images[0].height} has {tuple(clean.shape[1:])}. Repaint pictures "
            "of the size that it draws."
        )
    mask = torch.from_numpy(np.stack(cells)[:, None]).to(clean)
    return Kept(clean, noise.float().to(clean.device), mask)


def first_step(steps: int, strength: float) -> int:
    """Returns the step that a repaint of a strength starts from, as diffusers counts."""
    return int(max(steps - steps * strength, 0))
