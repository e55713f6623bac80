"""The words of the miniature world and what they look like: six shapes, eight colours.

The colours are far apart in hue or lightness, so that a blurred shape of one colour is not mistaken
for another. Backgrounds are light and pale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SIZE: Final = 128
"""Width and height of every image, in pixels."""

SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "ring")

COLOURS: Final[Mapping[str, tuple[int, int, int]]] = {
    "red": (222, 40, 40),
    "orange": (250, 145, 20),
    "yellow": (242, 222, 40),
    "green": (40, 165, 65),
    "cyan": (40, 200, 220),
    "blue": (40, 75, 220),
    "purple": (135, 50, 180),
    "black": (30, 30, 35),
}
"""Name -> sRGB, 0 to 255 a channel."""

RELATIONS: Final = ("left of", "right of", "above", "below")

COUNTS: Final = ("one", "two", "three", "four")
"""The number words; `COUNTS[n - 1]` names n."""

CATEGORIES: Final = (
    "single_object",
    "two_objects",
    "counting",
    "colours",
    "position",
    "attribute_binding",
)
"""The six task categories of GenEval (Ghosh et al. 2023)."""
