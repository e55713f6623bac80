"""Names the colour of a part of a picture: one of the eleven basic colour names of English."""

from __future__ import annotations

import colorsys
from typing import Final

import numpy as np
from PIL import Image

from tts_verifier.types import Box

COLOUR_NAMES: Final = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray",
)  # fmt: skip
"""Berlin and Kay's basic colour terms; the first ten are GenEval's."""
_CORE: Final = 0.25
"""The share of a box that is left out at each side: mostly what is behind the object."""
_HUES: Final = ((15, "red"), (45, "orange"), (70, "yellow"), (165, "green"), (260, "blue"))
_LATER_HUES: Final = ((292, "purple"), (340, "pink"), (361, "red"))


def colour_of(image: Image.Image, box: Box) -> str:
    """Returns the name of the median colour in the middle of a box.

    Args:
        image: RGB.
        box: (x1, y1, x2, y2) in pixels, inside the image.
    """
    x1, y1, x2, y2 = box
    dx, dy = _CORE * (x2 - x1), _CORE * (y2 - y1)
    left, top = int(x1 + dx), int(y1 + dy)
    core = image.crop((left, top, max(int(x2 - dx), left + 1), max(int(y2 - dy), top + 1)))
    # The median of each channel, because hues have no median: they go in a circle.
    red, green, blue = np.median(np.asarray(core).reshape(-1, 3), axis=0) / 255
    return name_of_colour(float(red), float(green), float(blue))


def name_of_colour(red: float, green: float, blue: float) -> str:
    """Returns the basic name of an sRGB colour in [0, 1], by its hue, saturation and value."""
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    hue *= 360
    if value < 0.2:
        return "black"
    if saturation < 0.15:
        return "white" if value > 0.8 else "gray"
    if (hue < 15 or hue >= 330) and saturation < 0.55 and value > 0.7:
        return "pink"
    if 10 <= hue < 48 and value < 0.7:
        return "brown"
    return next(name for end, name in (*_HUES, *_LATER_HUES) if hue < end)
