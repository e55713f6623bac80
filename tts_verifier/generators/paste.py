"""Puts a repainted part back into its parent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.types import Mask


def paste(parent: Image.Image, painted: Image.Image, mask: Mask, feather: int = 4) -> Image.Image:
    """Pastes a repainted part into its parent, whose pixels outside the mask stay the same.

    Args:
        parent: RGB.
        painted: RGB of the same size.
        mask: of the same size, True = repainted.
        feather: width in pixels, inside the mask, of the blend between the two images.

    Raises:
        InputError: the sizes differ, or `feather` is negative.
    """
    if not parent.size == painted.size == (mask.width, mask.height):
        raise InputError(
            "Parent, painted and mask must have one size, got "
            f"{parent.size}, {painted.size} and {(mask.width, mask.height)}."
        )
    if feather < 0:
        raise InputError(f"feather must not be negative, got {feather!r}.")
    weight = _feathered(mask.array(), feather)[:, :, None]
    old, new = (np.asarray(image.convert("RGB"), np.float32) for image in (parent, painted))
    return Image.fromarray(np.rint(old + weight * (new - old)).astype(np.uint8))


def _feathered(mask: NDArray[np.bool_], feather: int) -> NDArray[np.float32]:
    """Returns 0 outside the mask, rising to 1 at a depth of `feather` pixels inside it."""
    from scipy.ndimage import distance_transform_edt

    if feather == 0 or mask.all():
        return mask.astype(np.float32)
    distance = np.asarray(distance_transform_edt(mask), np.float32)
    weight: NDArray[np.float32] = np.clip(distance / np.float32(feather + 1), 0, 1)
    return weight
