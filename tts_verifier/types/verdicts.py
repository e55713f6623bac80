"""Verdicts: how good an image is, where it is wrong and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import readable_name
from tts_verifier.images import card, overlay
from tts_verifier.types.cost import Cost
from tts_verifier.types.proposals import Mask
from tts_verifier.types.score_names import written_scores
from tts_verifier.types.stored import InFile, InMemory, Stored

Detail = Literal["score", "diagnose"]
"""`score`: the numbers only, quickly. `diagnose`: numbers, heatmaps, boxes and reasons."""

Box = tuple[float, float, float, float]
"""(x1, y1, x2, y2) in the image's own pixels, x to the right, y down, x1 <= x2, y1 <= y2."""


@dataclass(frozen=True, slots=True, eq=False)
class Heatmap:
    """One map on its decoder's grid, and where the image lies on that grid."""

    grid: NDArray[np.float32]
    """float32 (h, w) in [0, 1], higher is worse."""
    size: tuple[int, int]
    """The image's (width, height) in pixels."""
    box: Box = (0.0, 0.0, 1.0, 1.0)
    """The part of the grid that the image covers, (x1, y1, x2, y2) as fractions of the grid: the
    whole grid for an image that was squashed to fill it, less for a letterboxed one."""

    def on_image(self) -> NDArray[np.float32]:
        """Returns the map on the image's own pixels: float32 (H, W) in [0, 1], bilinear."""
        h, w = self.grid.shape
        x1, y1, x2, y2 = self.box
        grid = Image.fromarray(np.ascontiguousarray(self.grid, dtype=np.float32))
        part = (x1 * w, y1 * h, x2 * w, y2 * h)
        pixels = grid.resize(self.size, Image.Resampling.BILINEAR, box=part)
        return np.clip(np.asarray(pixels, dtype=np.float32), 0.0, 1.0)

    def pooled(self, rows: int, columns: int) -> NDArray[np.float32]:
        """Returns the map's means over the cells of a grid that lies over the image.

        A mean is exact: a value of the decoder's grid counts by the area that it shares with the
        cell. So every grid fits, and one that is finer repeats values.

        Returns:
            float32 (rows, columns) in [0, 1].
        """
        x1, y1, x2, y2 = self.box
        h, w = self.grid.shape
        down = _area_weights(y1 * h, y2 * h, h, rows)
        across = _area_weights(x1 * w, x2 * w, w, columns)
        return np.clip(down @ self.grid.astype(np.float64) @ across.T, 0, 1).astype(np.float32)

    def mean_inside(self, mask: Mask) -> float:
        """Returns the mean of the map over a mask of the image, NaN for an empty mask.

        The mean is taken on the grid, which is much smaller than the image. The weight of a cell
        is the fraction of it that the mask covers.
        """
        h, w = self.grid.shape
        x1, y1, x2, y2 = self.box
        left, top = round(x1 * w), round(y1 * h)
        # The narrow side of a letterboxed panorama may round to no cell at all.
        cells = (max(round(x2 * w) - left, 1), max(round(y2 * h) - top, 1))
        pixels = Image.fromarray(mask.array().astype(np.float32))
        # A box filter averages the pixels of a cell: the fraction of it that the mask covers.
        share = np.asarray(pixels.resize(cells, Image.Resampling.BOX), dtype=np.float64)
        part = self.grid[top : top + cells[1], left : left + cells[0]]
        total = share.sum()
        return float((share * part).sum() / total) if total > 0 else math.nan


# The maps of a request mostly have one size; to make the matrix takes longer than to use it.
@lru_cache(maxsize=8)
def _area_weights(start: float, end: float, values: int, cells: int) -> NDArray[np.float64]:
    """Returns the share of each value in each cell, (cells, values), where rows add up to 1.

    Args:
        start: where the first cell begins, in values.
        end: where the last cell ends.
        values: how many values there are, each as wide as 1.
        cells: how many cells of equal width there are.
    """
    edges = np.linspace(start, end, cells + 1)
    first = np.arange(values)
    upper = np.minimum(edges[1:, None], first + 1)
    shares = np.clip(upper - np.maximum(edges[:-1, None], first), 0, None)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


class Heatmaps(Mapping[str, NDArray[np.float32]]):
    """Heatmaps by name, each float32 (H, W) in [0, 1] on the image's own pixels.

    Safe to share between threads: nothing changes after construction.

    Every access reads and resizes the map. A map that the model did not give is absent, not zero.

    Args:
        maps: by name, on the decoder's grid, in memory or in a file.
    """

    def __init__(self, maps: Mapping[str, Heatmap | Stored[Heatmap]] | None = None) -> None:
        # `Stored` itself is a generic alias, which `isinstance` refuses.
        self.stored: Mapping[str, Stored[Heatmap]] = {
            name: value if isinstance(value, InMemory | InFile) else InMemory(value)
            for name, value in (maps or {}).items()
        }

    def on_grid(self, name: str) -> Heatmap:
        """Returns a map on its decoder's grid; KeyError, as of a dict, if there is none."""
        if name not in self.stored:
            known = ", ".join(self.stored) or "none"
            raise KeyError(f"There is no heatmap {name!r}. Available: {known}.")
        return self.stored[name].load()

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self.on_grid(name).on_image()

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __repr__(self) -> str:
        return f"Heatmaps({', '.join(self.stored)})"


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """How good an image is, where it is wrong and why."""

    scores: Mapping[str, float]
    """Scores by name; higher is better; NaN where the reply has none. ImageDoctor's are in [0, 1],
    other verifiers name their own range. A score whose name ends in `_expected` is the expectation
    over the probabilities of the score's digits."""
    heatmaps: Heatmaps = field(default_factory=Heatmaps)
    """Heatmaps of what is wrong; `misalignment` and `artifact` for ImageDoctor."""
    boxes: tuple[Box, ...] = ()
    """The regions that the reply points at."""
    text: str = ""
    """The reply, unchanged but for lone surrogates, which become escapes."""
    detail: Detail = "diagnose"
    """How thoroughly the image was verified."""
    cost: Cost = field(default_factory=Cost)
    """The cost of the verdict."""
    error: str = ""
    """Why scores are NaN, if the reply alone does not say it; empty if they are usable."""

    def __post_init__(self) -> None:
        # JSON of an endpoint can hold halves of letters, which no file can: a log would break off.
        for name in ("text", "error"):
            object.__setattr__(self, name, readable_name(getattr(self, name) or ""))

    def overlay(self, image: Image.Image, name: str | None = None) -> Image.Image:
        """Returns an RGB copy of the verified image with a heatmap and the boxes over it.

        Args:
            image: the image that was verified.
            name: the heatmap to show; None = at each pixel the largest value of all heatmaps.

        Raises:
            InputError: there is no such heatmap, or the image has another size.
        """
        return overlay(image, self.heatmaps, self.boxes, name=name)

    def __repr__(self) -> str:
        scores = [f"{name} {value:.3f}" for name, value in written_scores(self.scores).items()]
        parts = [
            ", ".join(scores) or "no scores",
            f"heatmaps {', '.join(self.heatmaps)}" if self.heatmaps else "",
            f"boxes {len(self.boxes)}" if self.boxes else "",
            f"error: {self.error}" if self.error else "",
        ]
        return f"Verdict({self.detail}: {'; '.join(filter(None, parts))})"

    def _repr_html_(self) -> str:
        """Shows the verdict in a notebook: its heatmaps on black, its scores and the reply."""
        black = {name: Image.new("RGB", value.shape[::-1]) for name, value in self.heatmaps.items()}
        maps = [self.overlay(image, name) for name, image in black.items()]
        title = f"{self.detail}{': ' if self.heatmaps else ''}{', '.join(self.heatmaps)}"
        return card(self.error or title, maps, written_scores(self.scores), self.text)
