"""Where a picture is wrong, as a mask to repaint; and the repainted part put back.

Sources: ImageDoctor (arXiv 2510.01010) for the two maps; Otsu, "A threshold selection method
from gray-level histograms" (1979). Misalignment maps are low in amplitude, so thresholds are
relative to the map itself. Masks grow outwards to whole latent cells, because inpainting
pipelines sample masks on their latent grid and lose thin ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.types import Box, Mask

FLAT: Final = 0.02
"""A map whose values differ by less says nothing about where."""

LEAST_CELLS: Final = 4
WHOLE: Final = 0.6
"""A map whose mean is higher says that the whole picture is wrong."""

_THRESHOLDS: Final = ("mass", "quantile", "otsu")


@dataclass(frozen=True, slots=True)
class MaskRule:
    """How maps and boxes become a mask.

    Args:
        threshold: `mass`: the hottest pixels that hold the share `level` of a map's heat
            above its minimum. `quantile`: the pixels above the quantile `level`. `otsu`: the
            split of the histogram into two; `level` is not used.
        level: in (0, 1).
        area: the least and the largest share of the picture. Smaller spots are dropped
            unless there is no larger one; a larger mask means that all of it is wrong.
        dilate: by which share of the shorter side spots grow before they snap to cells: what
            is drawn anew needs room.
        cell: side of a latent cell in pixels; a spot is at least 4x4 cells.

    Raises:
        InputError: a value is not usable.
    """

    threshold: Literal["mass", "quantile", "otsu"] = "mass"
    level: float = 0.5
    area: tuple[float, float] = (0.005, 0.5)
    dilate: float = 0.08
    cell: int = 8

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
                f"area must be two rising shares of the picture in [0, 1], got {self.area!r}.",
                argument="area",
            )
        if self.dilate < 0 or self.cell < 1:
            raise InputError(
                "dilate must not be negative and cell must be positive, got "
                f"{self.dilate!r} and {self.cell!r}."
            )


def flaw_mask(
    maps: Sequence[NDArray[np.float32]],
    boxes: Sequence[Box],
    *,
    size: tuple[int, int],
    rule: MaskRule | None = None,
) -> Mask | None:
    """Returns what to repaint, or None: there is no place to name, so draw afresh.

    Every map is thresholded by itself and the spots are united: the artifacts, and both the
    place where a thing is and the place where it should be.

    Args:
        maps: float32 (H, W) in [0, 1] on the image's pixels, higher is worse.
        boxes: used when no map says where.
        size: the image's (width, height) in pixels.
        rule: None = `MaskRule()`.

    Raises:
        InputError: a map has another size than the image.
    """
    rule = rule or MaskRule()
    shape = (size[1], size[0])
    for heat in maps:
        if heat.shape != shape:
            raise InputError(f"A map must have the image's shape {shape}, got {heat.shape}.")
    if any(float(np.mean(heat)) > WHOLE for heat in maps):
        return None
    hot = np.zeros(shape, np.bool_)
    for heat in maps:
        if float(np.ptp(heat)) >= FLAT:
            hot |= _spots(heat > _threshold(heat, rule), rule.area[0])
    if not hot.any():
        hot = _filled(boxes, shape)
    mask = snap(_grown(hot, round(rule.dilate * min(size))), rule.cell)
    share = float(mask.mean())
    return Mask.of(mask) if 0 < share <= rule.area[1] else None


def spots(mask: Mask, maps: Sequence[NDArray[np.float32]]) -> list[Mask]:
    """Returns the connected spots of a mask, the one that holds the most heat first.

    Args:
        mask: from `flaw_mask`.
        maps: what it was made from, of the same size; none = the largest spot first.
    """
    from scipy.ndimage import label

    whole = mask.array()
    labels, count = label(whole, np.ones((3, 3)))
    heat = np.sum(maps, axis=0) if maps else whole.astype(np.float32)
    found = [labels == number for number in range(1, count + 1)]
    return [Mask.of(spot) for spot in sorted(found, key=lambda s: -float(heat[s].sum()))]


def snap(mask: NDArray[np.bool_], cell: int = 8) -> NDArray[np.bool_]:
    """Grows an (H, W) mask to whole cells, every spot to at least 4x4 of them."""
    from scipy.ndimage import find_objects, label

    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % cell), (0, -width % cell)))
    cells: NDArray[np.bool_] = np.any(
        padded.reshape(padded.shape[0] // cell, cell, -1, cell), axis=(1, 3)
    )
    for rows, columns in find_objects(label(cells, np.ones((3, 3)))[0]):
        if min(rows.stop - rows.start, columns.stop - columns.start) < LEAST_CELLS:
            cells[_wide(rows, cells.shape[0]), _wide(columns, cells.shape[1])] = True
    grown: NDArray[np.bool_] = np.kron(cells, np.ones((cell, cell), np.bool_))
    return grown[:height, :width]


def paste(parent: Image.Image, painted: Image.Image, mask: Mask, feather: int = 4) -> Image.Image:
    """Puts the repainted part into the parent: exactly the parent's pixels outside the mask.

    Args:
        parent: RGB.
        painted: RGB of the same size.
        mask: of the same size, True = repainted.
        feather: width in pixels, inside the mask, over which one passes into the other.

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
    share = _ramp(mask.array(), feather)[:, :, None]
    old, new = (np.asarray(image.convert("RGB"), np.float32) for image in (parent, painted))
    return Image.fromarray(np.rint(old + share * (new - old)).astype(np.uint8))


def _ramp(mask: NDArray[np.bool_], feather: int) -> NDArray[np.float32]:
    """Returns 0 outside the mask, rising to 1 at `feather` pixels within."""
    from scipy.ndimage import distance_transform_edt

    if feather == 0 or mask.all():
        return mask.astype(np.float32)
    distance = np.asarray(distance_transform_edt(mask), np.float32)
    share: NDArray[np.float32] = np.clip(distance / np.float32(feather + 1), 0, 1)
    return share


def _threshold(heat: NDArray[np.float32], rule: MaskRule) -> float:
    """Returns the value that hot pixels exceed."""
    if rule.threshold == "quantile":
        # Where many pixels share the highest value, none would exceed it.
        return min(float(np.quantile(heat, rule.level)), float(np.nextafter(heat.max(), -1)))
    return _otsu(heat) if rule.threshold == "otsu" else _mass(heat, rule.level)


def _mass(heat: NDArray[np.float32], level: float) -> float:
    values = np.sort((heat - heat.min()).ravel().astype(np.float64))[::-1]
    held = np.cumsum(values)
    last = min(int(np.searchsorted(held, level * held[-1])), values.size - 1)
    return float(np.nextafter(np.sort(heat.ravel())[::-1][last], -1))


def _otsu(heat: NDArray[np.float32], bins: int = 256) -> float:
    """Returns the split of the histogram that separates the two means best."""
    counts, edges = np.histogram(heat, bins)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = heat.size - below
    total = np.cumsum(counts * middles)
    gap = total[:-1] / below - (total[-1] - total[:-1]) / above
    return float(edges[1 + int(np.argmax(below * above * gap**2))])


def _spots(hot: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    """Drops spots below a share of the picture, all but the largest if all are below."""
    from scipy.ndimage import label

    labels, count = label(hot, np.ones((3, 3)))
    if count == 0:
        return hot
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept: NDArray[np.bool_] = np.asarray(sizes >= max(min(least * hot.size, sizes.max()), 1))
    large: NDArray[np.bool_] = kept[labels]
    return large


def _filled(boxes: Sequence[Box], shape: tuple[int, int]) -> NDArray[np.bool_]:
    inside = np.zeros(shape, np.bool_)
    for x1, y1, x2, y2 in boxes:
        rows = slice(max(int(y1), 0), max(int(np.ceil(y2)), 0))
        inside[rows, max(int(x1), 0) : max(int(np.ceil(x2)), 0)] = True
    return inside


def _grown(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    from scipy.ndimage import maximum_filter

    grown: NDArray[np.bool_] = maximum_filter(mask, size=2 * pixels + 1, mode="constant")
    return grown


def _wide(span: slice, limit: int) -> slice:
    """Widens a span of cells to the least side, within [0, limit)."""
    missing = max(LEAST_CELLS - (span.stop - span.start), 0)
    start = max(min(span.start - missing // 2, limit - LEAST_CELLS), 0)
    start = min(start, span.start)
    return slice(start, max(min(start + LEAST_CELLS, limit), span.stop))
