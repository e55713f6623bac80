"""From heatmaps and boxes to the mask to repaint.

Sources: ImageDoctor (arXiv 2510.01010) for the two heatmaps; Otsu, "A threshold selection
method from gray-level histograms" (1979). A mask is in pixels of the image. A generator grows it
to what it can repaint, such as whole latent cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tts_verifier.errors import InputError
from tts_verifier.types import Box, Mask

FLAT: Final = 0.02
"""A heatmap whose values differ by less does not say where the flaw is."""

WHOLLY_FLAWED: Final = 0.6
"""A heatmap with a higher mean says that the whole image is flawed."""

_THRESHOLDS: Final = ("mass", "quantile", "otsu")
_EIGHT_NEIGHBOURS: Final = np.ones((3, 3))
"""Pixels that touch at a corner belong to the same spot."""


@dataclass(frozen=True, slots=True)
class MaskRule:
    """Decides how heatmaps and boxes become a mask.

    Raises:
        InputError: a value is out of range.
    """

    threshold: Literal["mass", "quantile", "otsu"] = "mass"
    """`mass`: the hottest pixels that hold the share `level` of a heatmap's heat above its
    minimum. `quantile`: the pixels above the quantile `level`. `otsu`: the split of the histogram
    into two classes, without `level`."""
    level: float = 0.5
    """In (0, 1)."""
    area: tuple[float, float] = (0.005, 0.5)
    """(Least, most) share of the image. Spots below the least are dropped, but the largest spot is
    always kept. If all spots together exceed the most, there is no mask: the whole image counts
    as flawed."""
    dilate: float = 0.08
    """Share of the shorter side by which spots grow on each side, because a new object needs
    space."""

    def __post_init__(self) -> None:
        if self.threshold not in _THRESHOLDS:
            raise InputError(
                f"threshold must be one of {_THRESHOLDS}, got {self.threshold!r}.",
                argument="threshold",
            )
        if not 0 < self.level < 1:
            raise InputError(f"level must be in (0, 1), got {self.level!r}.", argument="level")
        if len(self.area) != 2 or not 0 <= self.area[0] < self.area[1] <= 1:
            raise InputError(
                f"area must be two rising shares of the image in [0, 1], got {self.area!r}.",
                argument="area",
            )
        if not self.dilate >= 0:
            raise InputError(
                f"dilate must not be negative, got {self.dilate!r}.", argument="dilate"
            )


def flaw_mask(
    heatmaps: Sequence[NDArray[np.float32]],
    boxes: Sequence[Box],
    *,
    size: tuple[int, int],
    rule: MaskRule | None = None,
) -> Mask | None:
    """Returns the part of an image to repaint.

    Each heatmap is thresholded on its own and the spots are united. A mask therefore covers
    artifacts, and both the place where an object is and the place where it should be.

    Args:
        heatmaps: float32 (H, W) in [0, 1] on the image's pixels, higher = more flawed.
        boxes: used if no heatmap says where the flaw is.
        size: (width, height) of the image in pixels.
        rule: None = `MaskRule()`.

    Returns:
        A mask on the image's pixels; None if no place can be named, so that a fresh draw is
        the better remedy.

    Raises:
        InputError: the size of a heatmap differs from that of the image.
    """
    rule = rule or MaskRule()
    shape = (size[1], size[0])
    for heat in heatmaps:
        if heat.shape != shape:
            raise InputError(f"A heatmap must have the image's shape {shape}, got {heat.shape}.")
    if any(float(np.mean(heat)) > WHOLLY_FLAWED for heat in heatmaps):
        return None
    hot = np.zeros(shape, np.bool_)
    for heat in heatmaps:
        if float(np.ptp(heat)) >= FLAT:
            hot |= _without_specks(heat > _threshold(heat, rule), rule.area[0])
    if not hot.any():
        hot = _inside_boxes(boxes, shape)
    mask = _dilated(hot, round(rule.dilate * min(size)))
    share = float(mask.mean())
    return Mask.of(mask) if 0 < share <= rule.area[1] else None


def spots(mask: Mask, heatmaps: Sequence[NDArray[np.float32]]) -> list[Mask]:
    """Splits a mask into its connected spots, the one with the most heat first.

    Args:
        mask: from `flaw_mask`.
        heatmaps: the heatmaps of the mask, of its size; none = the largest spot first.
    """
    from scipy.ndimage import label

    whole = mask.array()
    labels, count = label(whole, _EIGHT_NEIGHBOURS)
    heat = np.sum(heatmaps, axis=0) if heatmaps else whole.astype(np.float32)
    parts = [labels == number for number in range(1, count + 1)]
    return [Mask.of(part) for part in sorted(parts, key=lambda p: -float(heat[p].sum()))]


def _threshold(heat: NDArray[np.float32], rule: MaskRule) -> float:
    """Returns the value that hot pixels exceed.

    Heatmaps of misalignment have low amplitudes, so that thresholds are relative to the heatmap.
    """
    if rule.threshold == "quantile":
        # If many pixels share the highest value, none exceeds it.
        return min(float(np.quantile(heat, rule.level)), float(np.nextafter(heat.max(), -1)))
    return _otsu(heat) if rule.threshold == "otsu" else _mass(heat, rule.level)


def _mass(heat: NDArray[np.float32], level: float) -> float:
    """Returns the value exceeded by the pixels that hold the share `level` of the heat."""
    falling = np.sort(heat.ravel())[::-1]
    total = np.cumsum((falling - falling[-1]).astype(np.float64))
    last = min(int(np.searchsorted(total, level * total[-1])), falling.size - 1)
    return float(np.nextafter(falling[last], -1))


def _otsu(heat: NDArray[np.float32], bins: int = 256) -> float:
    """Returns the split of the histogram with the largest variance between its two classes."""
    counts, edges = np.histogram(heat, bins)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = heat.size - below
    total = np.cumsum(counts * middles)
    gap = total[:-1] / below - (total[-1] - total[:-1]) / above
    return float(edges[1 + int(np.argmax(below * above * gap**2))])


def _without_specks(hot: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    """Drops spots below the share `least` of the image; if all are below, keeps the largest."""
    from scipy.ndimage import label

    labels, count = label(hot, _EIGHT_NEIGHBOURS)
    if count == 0:
        return hot
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    # Label 0 is the background.
    sizes[0] = 0
    large: NDArray[np.bool_] = np.asarray(sizes >= max(min(least * hot.size, sizes.max()), 1))
    hot_large: NDArray[np.bool_] = large[labels]
    return hot_large


def _inside_boxes(boxes: Sequence[Box], shape: tuple[int, int]) -> NDArray[np.bool_]:
    inside = np.zeros(shape, np.bool_)
    for x1, y1, x2, y2 in boxes:
        rows = slice(max(int(y1), 0), max(int(np.ceil(y2)), 0))
        inside[rows, max(int(x1), 0) : max(int(np.ceil(x2)), 0)] = True
    return inside


def _dilated(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    from scipy.ndimage import maximum_filter

    grown: NDArray[np.bool_] = maximum_filter(mask, size=2 * pixels + 1, mode="constant")
    return grown
