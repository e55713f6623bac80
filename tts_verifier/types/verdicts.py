"""How good an image is, where it is wrong and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.images import overlay
from tts_verifier.types.cost import Cost

Detail = Literal["score", "diagnose"]
"""`score`: the numbers only, quickly. `diagnose`: numbers, heatmaps, boxes and reasons."""

Box = tuple[float, float, float, float]
"""(x1, y1, x2, y2) in the image's own pixels, x to the right, y down, x1 <= x2, y1 <= y2."""


@dataclass(frozen=True, slots=True, eq=False)
class Heatmap:
    """One map on its decoder's grid, and where the image lies on that grid.

    `grid`: float32 (h, w) in [0, 1]. `size`: the image's (width, height) in pixels.
    `box`: the part of the grid that the image covers, (x1, y1, x2, y2) as fractions of the
    grid; (0, 0, 1, 1) when the image was squashed to fill it, less when letterboxed.
    """

    grid: NDArray[np.float32]
    size: tuple[int, int]
    box: Box = (0.0, 0.0, 1.0, 1.0)

    def on_image(self) -> NDArray[np.float32]:
        """Returns the map on the image's own pixels: float32 (H, W) in [0, 1], bilinear."""
        h, w = self.grid.shape
        x1, y1, x2, y2 = self.box
        grid = Image.fromarray(np.ascontiguousarray(self.grid, dtype=np.float32))
        part = (x1 * w, y1 * h, x2 * w, y2 * h)
        pixels = grid.resize(self.size, Image.Resampling.BILINEAR, box=part)
        return np.clip(np.asarray(pixels, dtype=np.float32), 0.0, 1.0)


class Heatmaps(Mapping[str, NDArray[np.float32]]):
    """Maps by name, each float32 (H, W) in [0, 1] on the image's own pixels.

    Computed from the decoder's grid when asked for. A map that the model did not give is
    absent, never zeros. `raw` holds the maps as the decoder made them.
    """

    def __init__(self, raw: Mapping[str, Heatmap] | None = None) -> None:
        self.raw: Mapping[str, Heatmap] = dict(raw or {})

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self.raw[name].on_image()

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        return f"Heatmaps({', '.join(self.raw)})"


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """How good an image is, where it is wrong and why.

    `scores`: name -> number in [0, 1], higher is better, NaN where the reply gave none; those
    in `_expected` are finer. `text`: the reply, unchanged. `detail`: how thorough the look was.
    """

    scores: Mapping[str, float]
    heatmaps: Heatmaps = field(default_factory=Heatmaps)
    boxes: tuple[Box, ...] = ()
    text: str = ""
    detail: Detail = "diagnose"
    cost: Cost = field(default_factory=Cost)

    def overlay(self, image: Image.Image, name: str | None = None) -> Image.Image:
        """Returns an RGB copy of the judged picture with a map over it and the boxes drawn.

        `name`: of a map; None shows the largest value of all maps at every pixel.

        Raises:
            InputError: there is no such map, or the picture has another size.
        """
        return overlay(image, self.heatmaps, self.boxes, name=name)
