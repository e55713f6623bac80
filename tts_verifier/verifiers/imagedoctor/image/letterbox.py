"""Maps between an image's pixels and the square frame that the model sees.

The official scorer squashes every image to 512 x 512; "pad" keeps the aspect and letterboxes
the image instead. Replies write boxes in pixels of a 512-pixel frame, whatever the model's own
input size is. All positions are fractions of the frame, so boxes and heatmaps come back exactly
onto the image's own pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.types import Box

FitMode = Literal["squash", "pad"]
FIT_MODES: Final = ("squash", "pad")

BOX_FRAME: Final = 512.0
"""Side of the frame in whose pixels a reply gives boxes."""

PADDING: Final = (123, 117, 104)
"""CLIP's mean colour: the padding becomes zero when the image is normalised."""


@dataclass(frozen=True, slots=True)
class FrameMapping:
    """The place of an image within the square frame."""

    image_size: tuple[int, int]
    """(width, height) of the image in pixels."""
    box: Box = (0.0, 0.0, 1.0, 1.0)
    """(left, top, right, bottom) of the image, in fractions of the frame."""

    @classmethod
    def of(cls, image_size: tuple[int, int], side: int, *, fit: FitMode) -> FrameMapping:
        """Places an image of (width, height) in a frame of `side` pixels; see `fit_to_square`."""
        if fit == "squash" or image_size[0] == image_size[1]:
            return cls(image_size)
        (w, h), (x, y) = _letterbox(image_size, side)
        return cls(image_size, (x / side, y / side, (x + w) / side, (y + h) / side))

    def to_image(self, box: Box) -> Box | None:
        """Maps a box of the 512-pixel frame to the image's pixels; None if it lies outside."""
        (left, top, right, bottom), (w, h) = self.box, self.image_size
        x1, x2 = (_to_pixels(x, left, right, w) for x in (box[0], box[2]))
        y1, y2 = (_to_pixels(y, top, bottom, h) for y in (box[1], box[3]))
        return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None

    def to_frame(self, box: Box) -> Box:
        """Maps a box of the image's pixels to the 512-pixel frame."""
        (left, top, right, bottom), (w, h) = self.box, self.image_size
        x1, x2 = ((left + x / w * (right - left)) * BOX_FRAME for x in (box[0], box[2]))
        y1, y2 = ((top + y / h * (bottom - top)) * BOX_FRAME for y in (box[1], box[3]))
        return (x1, y1, x2, y2)


def _to_pixels(value: float, low: float, high: float, length: int) -> float:
    """Maps a frame coordinate to a side of `length` pixels, clamped to the image."""
    return min(max((value / BOX_FRAME - low) / (high - low) * length, 0.0), float(length))


def _letterbox(image_size: tuple[int, int], side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the resized image's (width, height) and its upper left corner in the frame."""
    w, h = image_size
    longest = max(w, h)
    # At least 1, because the short side of a very thin image would round to 0.
    inner = (max(1, round(w * side / longest)), max(1, round(h * side / longest)))
    return inner, ((side - inner[0]) // 2, (side - inner[1]) // 2)


def fit_to_square(image: Image.Image, side: int, *, fit: FitMode = "squash") -> Image.Image:
    """Fits an RGB image into a square frame.

    Args:
        image: an image of any size.
        side: side of the frame in pixels.
        fit: "squash" resizes the image to the square (bicubic). "pad" keeps the aspect and
            centres the image on `PADDING`.

    Raises:
        InputError: `fit` is neither.
    """
    if fit not in FIT_MODES:
        raise InputError(f"fit must be one of {', '.join(FIT_MODES)}, got {fit!r}.")
    if fit == "squash" or image.width == image.height:
        return _resize(image, (side, side))
    inner, corner = _letterbox(image.size, side)
    frame = Image.new("RGB", (side, side), PADDING)
    frame.paste(_resize(image, inner), corner)
    return frame


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC)


@lru_cache
def smart_resize(h: int, w: int, *, factor: int, low: int, high: int) -> tuple[int, int]:
    """Rounds a size to multiples of `factor`, with `low` <= pixels <= `high` (Qwen2-VL).

    Args:
        h: height in pixels.
        w: width in pixels.
        factor: the unit, in pixels; no side becomes smaller than one unit.
        low: the smallest area in pixels.
        high: the largest area in pixels.

    Returns:
        (height, width), with the aspect kept as nearly as the multiples allow.
    """
    new_h, new_w = (max(factor, round(side / factor) * factor) for side in (h, w))
    # Rounds down from a large area and up from a small one, so the bound is met for certain.
    if new_h * new_w > high:
        shrink = math.sqrt(h * w / high)
        new_h, new_w = (max(factor, int(side / shrink / factor) * factor) for side in (h, w))
    elif new_h * new_w < low:
        grow = math.sqrt(low / (h * w))
        new_h, new_w = (math.ceil(side * grow / factor) * factor for side in (h, w))
    return new_h, new_w
