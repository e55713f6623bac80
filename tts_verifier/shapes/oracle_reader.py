"""The oracle: reads a picture by colour, connected parts and geometry; labels training data.

It sees pixels only. A pixel belongs to a colour when it lies near it in sRGB; connected
pixels of one colour are a part; a part's outline, its distance from the centre of mass as a
function of the bearing, tells its shape by its Fourier amplitudes (three for a triangle, four
for a square or a cross, five for a star) and by its hole.

Every tolerance is a constant below, frozen before the bundled generator was trained.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tts_verifier.shapes.grammar import Spec
from tts_verifier.shapes.reading import Reading, Thing, compare
from tts_verifier.shapes.vocabulary import COLOURS, SIZE
from tts_verifier.types import Box

NEAR: Final = 72.0
"""Largest sRGB distance (0 to 255 a channel) of a pixel from the colour that it belongs to."""
SMALLEST: Final = 36
"""Fewest pixels of a thing; fewer are a speck."""
REACH: Final = 3
"""How far around its core pixels a part's soft edge may lie, pixels."""
BEARINGS: Final = 48
"""Directions in which an outline is measured."""
HOLE: Final = 0.08
"""Least share of a filled part that is its hole, for a ring."""
STRANGE: Final = 0.14
"""Largest distance from the nearest shape's amplitudes; beyond, a thing is of no known shape."""
HARMONICS: Final = (2, 3, 4, 5, 6)
OUTLINES: Final = {
    "circle": (0.0, 0.0, 0.0, 0.0, 0.0),
    "square": (0.0, 0.0, 0.14, 0.0, 0.0),
    "triangle": (0.0, 0.28, 0.0, 0.0, 0.09),
    "star": (0.0, 0.0, 0.0, 0.32, 0.0),
    "cross": (0.0, 0.0, 0.33, 0.0, 0.0),
}
"""Shape -> amplitudes of its outline at HARMONICS, over the mean radius."""

Mask = NDArray[np.bool_]
_NAMES: Final = tuple(COLOURS)
_PALETTE: Final = np.array(list(COLOURS.values()), np.float32)


def read(pixels: NDArray[np.uint8], spec: Spec) -> Reading:
    """Reads (128, 128, 3) uint8 sRGB against a spec."""
    return compare(spec, find(pixels))


def find(pixels: NDArray[np.uint8]) -> list[Thing]:
    """Finds the things in (128, 128, 3) uint8 sRGB."""
    rgb = pixels.astype(np.float32)
    gap = np.linalg.norm(rgb[:, :, None] - _PALETTE, axis=-1)
    nearest = gap.argmin(-1)
    core = gap.min(-1) < NEAR
    ground = _background(rgb)
    found: list[Thing] = []
    for index, name in enumerate(_NAMES):
        mask = core & (nearest == index)
        if mask.sum() < SMALLEST:
            continue
        parts, _ = ndimage.label(mask)
        for number, place in enumerate(ndimage.find_objects(parts), 1):
            part = parts[place] == number
            if part.sum() >= SMALLEST:
                window = _grown(place)
                whole = _soft(rgb[window], ground[window], parts[window] == number, index)
                found += _things(whole, window, name)
    return found


def _background(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """Estimates a vertical gradient from the two side columns: (128, 128, 3)."""
    sides = np.concatenate([rgb[:, :3], rgb[:, -3:]], 1)
    rows = np.median(sides, axis=1)
    smooth = ndimage.median_filter(rows, size=(31, 1), mode="nearest")
    return np.broadcast_to(smooth[:, None], rgb.shape)


Window = tuple[slice, slice]


def _grown(place: Window) -> Window:
    rows, columns = (slice(max(s.start - REACH, 0), min(s.stop + REACH, SIZE)) for s in place)
    return rows, columns


def _soft(rgb: NDArray[np.float32], ground: NDArray[np.float32], core: Mask, colour: int) -> Mask:
    """Adds to a part's core those edge pixels that are more its colour than background."""
    way = _PALETTE[colour] - ground
    share = ((rgb - ground) * way).sum(-1) / (way * way).sum(-1)
    near = ndimage.binary_dilation(core, iterations=REACH - 1)
    off = np.linalg.norm(rgb - ground - share[..., None] * way, axis=-1)
    edge: Mask = near & (share > 0.5) & (off < NEAR / 2)
    return core | edge


def _things(mask: Mask, window: Window, colour: str) -> list[Thing]:
    """Names one part, or the pieces it falls into if only those have known shapes."""
    shape = shape_of(mask)
    if shape is None:
        pieces = _split(mask)
        shapes = [shape_of(piece) for piece in pieces]
        if len(pieces) > 1 and None not in shapes:
            return [_thing(p, window, s, colour) for p, s in zip(pieces, shapes, strict=True)]
    return [_thing(mask, window, shape, colour)]


def _thing(mask: Mask, window: Window, shape: str | None, colour: str) -> Thing:
    top, left = window[0].start, window[1].start
    rows, columns = np.nonzero(mask)
    box: Box = (
        float(left + columns.min()),
        float(top + rows.min()),
        float(left + columns.max() + 1),
        float(top + rows.max() + 1),
    )
    centre = (float(left + columns.mean() + 0.5), float(top + rows.mean() + 0.5))
    return Thing(shape, colour, centre, box)


def shape_of(mask: Mask) -> str | None:
    """Names the shape of a part, (h, w) bool; None if it is none of the known ones."""
    filled = ndimage.binary_fill_holes(np.pad(mask, 1))[1:-1, 1:-1]
    hole = 1 - mask.sum() / filled.sum()
    amplitudes = outline(filled)
    gaps = {name: float(np.linalg.norm(amplitudes - known)) for name, known in OUTLINES.items()}
    name = min(gaps, key=gaps.__getitem__)
    if gaps[name] > STRANGE:
        return None
    if name == "circle" and hole > HOLE:
        return "ring"
    return name if hole < HOLE else None


def outline(filled: Mask) -> NDArray[np.float64]:
    """Measures a part without holes: amplitudes at HARMONICS of radius over mean radius."""
    rows, columns = np.nonzero(filled)
    y, x = rows.mean(), columns.mean()
    bearing = np.linspace(0, 2 * np.pi, BEARINGS, endpoint=False)
    reach = np.hypot(rows - y, columns - x).max() + 1.5
    steps = np.arange(0, reach, 0.25)
    at_y = y + steps[:, None] * np.sin(bearing)
    at_x = x + steps[:, None] * np.cos(bearing)
    padded = np.pad(filled.astype(np.float32), 2)
    inside = ndimage.map_coordinates(padded, [at_y + 2, at_x + 2], order=1) > 0.5
    last = inside.shape[0] - inside[::-1].argmax(0)
    radius = np.where(inside.any(0), last * 0.25, 0.0)
    spectrum = np.abs(np.fft.rfft(radius / max(radius.mean(), 1e-6))) * 2 / BEARINGS
    return spectrum[list(HARMONICS)]


def _split(mask: Mask) -> list[Mask]:
    """Cuts a part at its waists: erodes until it falls apart, then gives every pixel to the
    nearest remnant; one piece if it never falls apart."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    for level in np.arange(1.0, float(depth.max()), 0.5):
        remnants, count = ndimage.label(depth > level)
        sizes = ndimage.sum_labels(mask, remnants, np.arange(1, count + 1))
        if count > 1 and sizes.min() >= SMALLEST / 4:
            index = ndimage.distance_transform_edt(
                remnants == 0, return_distances=False, return_indices=True
            )
            owner = remnants[tuple(index)]
            return [mask & (owner == n) for n in range(1, count + 1)]
    return [mask]
