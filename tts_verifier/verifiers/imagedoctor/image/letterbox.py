"""Between an image's pixels and the square frame that the model sees.

The official scorer squashes every image to 512 x 512 (and writes boxes in pixels of that
frame, whatever the model's own input size); `pad` keeps the aspect and letterboxes instead.
Everything is exact in fractions of the frame, so that boxes and heatmaps come back onto the
image's own pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.types import Box

Fit = Literal["squash", "pad"]
FITS: Final = ("squash", "pad")

BOX_FRAME: Final = 512.0
"""Boxes in replies are in pixels of a frame of this side."""

PADDING: Final = (123, 117, 104)
"""CLIP's mean colour: the letterbox is zero after normalisation."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image of `size` (width, height) lies: `box` in fractions of the frame."""

    size: tuple[int, int]
    box: Box = (0.0, 0.0, 1.0, 1.0)

    def to_image(self, box: Box) -> Box | None:
        """Maps a box of the 512-px frame to the image's pixels; None if it lies outside."""
        (left, top, right, bottom), (w, h) = self.box, self.size
        x1, x2 = (_within(x, left, right, w) for x in (box[0], box[2]))
        y1, y2 = (_within(y, top, bottom, h) for y in (box[1], box[3]))
        return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None

    def to_frame(self, box: Box) -> Box:
        """Maps a box of the image's pixels to the 512-px frame."""
        (left, top, right, bottom), (w, h) = self.box, self.size
        x1, x2 = ((left + x / w * (right - left)) * BOX_FRAME for x in (box[0], box[2]))
        y1, y2 = ((top + y / h * (bottom - top)) * BOX_FRAME for y in (box[1], box[3]))
        return (x1, y1, x2, y2)


def _within(value: float, low: float, high: float, length: int) -> float:
    """Maps a frame coordinate to pixels of a side of `length`, kept inside the image."""
    return min(max((value / BOX_FRAME - low) / (high - low) * length, 0.0), float(length))


def place(image: Image.Image, side: int, *, fit: Fit = "squash") -> tuple[Image.Image, Placement]:
    """Fits an RGB image into a square.

    Args:
        image: any size.
        side: of the square, in pixels.
        fit: "squash" = resize to the square (bicubic); "pad" = keep the aspect, centre it.

    Raises:
        InputError: `fit` is neither.
    """
    if fit not in FITS:
        raise InputError(f"fit must be one of {', '.join(FITS)}, got {fit!r}.")
    w, h = image.size
    if fit == "squash" or w == h:
        return _resized(image, (side, side)), Placement(image.size)
    longest = max(w, h)
    inner = (max(1, round(w * side / longest)), max(1, round(h * side / longest)))
    x, y = (side - inner[0]) // 2, (side - inner[1]) // 2
    frame = Image.new("RGB", (side, side), PADDING)
    frame.paste(_resized(image, inner), (x, y))
    box = (x / side, y / side, (x + inner[0]) / side, (y + inner[1]) / side)
    return frame, Placement(image.size, box)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC)


def smart_resize(h: int, w: int, *, factor: int, low: int, high: int) -> tuple[int, int]:
    """Rounds a size to multiples of `factor` with `low` <= pixels <= `high` (Qwen2-VL).

    Aspect is kept as nearly as the multiples allow; never less than one `factor` a side.
    """
    new_h, new_w = (max(factor, round(side / factor) * factor) for side in (h, w))
    if new_h * new_w > high:
        shrink = math.sqrt(h * w / high)
        new_h, new_w = (max(factor, int(side / shrink / factor) * factor) for side in (h, w))
    elif new_h * new_w < low:
        grow = math.sqrt(low / (h * w))
        new_h, new_w = (math.ceil(side * grow / factor) * factor for side in (h, w))
    return new_h, new_w
