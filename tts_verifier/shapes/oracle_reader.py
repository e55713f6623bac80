"""The oracle: reads a picture by colour, connected parts and geometry; labels training data.

It sees pixels only. A pixel belongs to a colour when it lies near it in sRGB; connected
pixels of one colour are a part. A part's outline, its farthest distance from the middle as a
function of the bearing, is held against the polar outline of each shape; the quarter of the
bearings that fits worst is left out, so that a bite or a smear does not hide what a thing is.
Fragments close to a larger part of their colour are taken as pieces broken off it, and a part
of no known shape is cut at its waists, in case it is several that touch.

Every tolerance is a constant below, frozen before the bundled generator was trained.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import ndimage

from tts_verifier.shapes.grammar import Spec
from tts_verifier.shapes.reading import Reading, Thing, compare
from tts_verifier.shapes.vocabulary import COLOURS, SIZE
from tts_verifier.types import Box

NEAR: Final = 72.0
"""Largest sRGB distance (0 to 255 a channel) of a pixel from the colour that it belongs to."""
SMALLEST: Final = 60
"""Fewest pixels of a thing, its soft edge included; fewer are a speck."""
CORE: Final = 24
"""Fewest pixels near its colour that a thing has."""
PIECE: Final = 100
"""Fewest pixels of a thing that is not a fragment of one nearby."""
REACH: Final = 3
"""How far around its core pixels a part's soft edge may lie, pixels."""
GAP: Final = 8
"""How far a fragment may lie from the part that it broke off, pixels."""
FRAGMENT: Final = 0.3
"""Largest size of a fragment, as a share of the part that it broke off."""
BEARINGS: Final = 60
"""Directions in which an outline is measured."""
TILTS: Final = np.arange(-8, 9) * (np.pi / BEARINGS)
"""Rotations tried, radians: up to 24 degrees either way, in half bearings."""
TRUSTED: Final = 0.75
"""Share of the bearings, the best fitting, that decides."""
STRANGE: Final = 0.09
"""Largest mean log ratio of measured and known radius; beyond, a thing has no known shape."""
FILLED: Final = (0.6, 1.4)
"""Least and largest area of a part over that of the shape it is taken for."""
HOLE: Final = 0.4
"""Radius of the middle that a ring leaves free, over its outer radius."""

Mask = NDArray[np.bool_]
Floats = NDArray[np.floating[Any]]
_NAMES: Final = tuple(COLOURS)
_PALETTE: Final = np.array(list(COLOURS.values()), np.float32)
_BEARING: Final = np.arange(BEARINGS) * (2 * np.pi / BEARINGS)


def _outline(name: str, bearing: Floats) -> Floats:
    """Returns a shape's radius by bearing (radians, clockwise from the right), 1 = its size."""
    cos, sin = np.abs(np.cos(bearing)), np.abs(np.sin(bearing))
    if name == "square":
        return np.asarray(1 / np.maximum(cos, sin))
    if name == "cross":
        long, wide = np.maximum(cos, sin), np.minimum(cos, sin)
        return np.asarray(np.minimum(1 / long, 0.33 / np.maximum(wide, 1e-9)))
    if name == "triangle":
        third = 2 * np.pi / 3
        folded = (bearing - np.pi / 2 + third / 2) % third - third / 2
        return np.asarray(1 / np.cos(folded))
    if name == "star":
        fifth, notch = 2 * np.pi / 5, 0.44
        folded = np.abs((bearing + np.pi / 2 + fifth / 2) % fifth - fifth / 2)
        half = fifth / 2
        across = np.sin(folded) + notch * np.sin(half - folded)
        return np.asarray(notch * np.sin(half) / across)
    return np.ones_like(bearing)


_SHAPES: Final = ("circle", "square", "triangle", "star", "cross")
_LOG_KNOWN: Final = np.log([[_outline(n, _BEARING - t) for t in TILTS] for n in _SHAPES])
_AREA: Final = np.array([(_outline(n, _BEARING) ** 2).mean() * np.pi for n in _SHAPES])
_RING_AREA: Final = 0.73 * np.pi


def read(pixels: NDArray[np.uint8], spec: Spec) -> Reading:
    """Reads (128, 128, 3) uint8 sRGB against a spec."""
    return compare(spec, find(pixels))


def read_batch(
    pixels: NDArray[np.uint8], specs: Sequence[Spec], *, workers: int | None = None
) -> list[Reading]:
    """Reads picture i against spec i.

    Args:
        pixels: (B, 128, 128, 3) uint8 sRGB.
        specs: one a picture.
        workers: processes; None is one a core.
    """
    count = min(workers or os.cpu_count() or 1, len(specs))
    if count <= 1:
        return [read(p, s) for p, s in zip(pixels, specs, strict=True)]
    cuts = [len(specs) * i // count for i in range(count + 1)]
    chunks = [slice(a, b) for a, b in pairwise(cuts)]
    done = Parallel(n_jobs=count)(
        delayed(read_batch)(pixels[c], specs[c], workers=1) for c in chunks
    )
    return [reading for part in done for reading in part]


def find(pixels: NDArray[np.uint8]) -> list[Thing]:
    """Finds the things in (128, 128, 3) uint8 sRGB."""
    rgb = pixels.astype(np.float32)
    gap = np.stack([((rgb - colour) ** 2).sum(-1) for colour in _PALETTE])
    nearest = gap.argmin(0)
    core = gap.min(0) < NEAR**2
    ground = _background(rgb)
    found: list[Thing] = []
    for index in np.unique(nearest[core]).tolist():
        parts, _ = ndimage.label(core & (nearest == index))
        wholes = []
        for number, place in enumerate(ndimage.find_objects(parts), 1):
            if (parts[place] == number).sum() >= CORE:
                window = _grown(place)
                mine = parts[window] == number
                wholes.append((window, _soft(rgb[window], ground[window], mine, index)))
        found += _things(wholes, _NAMES[index])
    return found


def _background(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """Estimates a vertical gradient from the two side columns: (128, 128, 3)."""
    sides = np.concatenate([rgb[:, :3], rgb[:, -3:]], 1)
    rows = np.median(sides, axis=1)
    smooth = ndimage.median_filter(rows, size=(31, 1), mode="nearest")
    return np.broadcast_to(smooth[:, None], rgb.shape)


Window = tuple[slice, slice]
Part = tuple[Window, Mask]
"""Where a part's mask lies in the picture, and the mask."""


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


def _things(parts: Sequence[Part], colour: str) -> list[Thing]:
    """Names the parts of one colour, largest first; a fragment joins what it broke off."""
    named: list[tuple[Part, str | None]] = []
    for window, mask in sorted(parts, key=lambda p: -int(p[1].sum())):
        shape = shape_of(mask)
        owner = next((i for i, (p, _) in enumerate(named) if _broke_off(p, (window, mask))), None)
        if owner is not None and (shape is None or mask.sum() < PIECE):
            joint = _joined(named[owner][0], (window, mask))
            named[owner] = joint, shape_of(joint[1]) or named[owner][1]
        elif mask.sum() >= SMALLEST:
            named.append(((window, mask), shape))
    return [t for part, shape in named for t in _split_things(part, shape, colour)]


def _broke_off(large: Part, small: Part) -> bool:
    """True when a part is so much smaller than another, and so close, that it is its piece."""
    if small[1].sum() > FRAGMENT * large[1].sum():
        return False
    apart = [
        max(a.start - b.stop, b.start - a.stop) + 2 * REACH
        for a, b in zip(large[0], small[0], strict=True)
    ]
    return bool(max(apart) <= GAP)


def _joined(large: Part, small: Part) -> Part:
    whole = np.zeros((SIZE, SIZE), bool)
    for window, mask in (large, small):
        whole[window] |= mask
    rows, columns = (
        slice(min(a.start, b.start), max(a.stop, b.stop))
        for a, b in zip(large[0], small[0], strict=True)
    )
    return (rows, columns), whole[rows, columns]


def _split_things(part: Part, shape: str | None, colour: str) -> list[Thing]:
    """Lists one part, or the pieces it falls into if only those have known shapes."""
    window, mask = part
    if shape is None:
        pieces = _split(mask)
        shapes = [shape_of(piece) for piece in pieces]
        whole = all(piece.sum() >= PIECE for piece in pieces)
        if len(pieces) > 1 and whole and None not in shapes:
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
    rows, columns = np.nonzero(mask)
    points = np.stack([columns, rows], 1) + 0.0
    verdicts = [_matched(mask, middle) for middle in (points.mean(0), _steiner(points))]
    error, name, size, middle = min(verdicts, key=lambda v: v[0])
    area = _AREA[_SHAPES.index(name)]
    if name == "circle":
        near = np.hypot(*(points - middle).T) < HOLE * size
        if near.sum() < 0.5 * np.pi * (HOLE * size) ** 2:
            name, area = "ring", _RING_AREA
    fits = FILLED[0] < len(points) / (area * size**2) < FILLED[1]
    return name if error < STRANGE and fits else None


def _steiner(points: Floats) -> Floats:
    """Returns the Steiner point of the convex hull: a middle that bites hardly move."""
    ways = np.stack([np.cos(_BEARING), np.sin(_BEARING)], 1)
    return np.asarray(2 * ((points @ ways.T).max(0)[:, None] * ways).mean(0))


def _matched(mask: Mask, middle: Floats) -> tuple[float, str, float, Floats]:
    """Returns (error, shape, its size in pixels, middle) of the best match around a middle."""
    measured = np.log(_radii(mask, middle))
    ratio = measured - _LOG_KNOWN
    size = np.median(ratio, axis=-1, keepdims=True)
    ranked = np.sort(np.abs(ratio - size), axis=-1)[..., : int(TRUSTED * BEARINGS)]
    error = ranked.mean(-1)
    best = np.unravel_index(error.argmin(), error.shape)
    return float(error[best]), _SHAPES[best[0]], float(np.exp(size[best][0])), middle


def _radii(mask: Mask, middle: Floats) -> Floats:
    """Measures how far a part reaches from a middle (x, y) by bearing: (BEARINGS,) pixels."""
    padded = np.pad(mask.astype(np.float32), 2)
    steps = np.arange(0.5, np.hypot(*mask.shape), 0.5)[:, None]
    x = middle[0] + 2 + steps * np.cos(_BEARING)
    y = middle[1] + 2 + steps * np.sin(_BEARING)
    inside = ndimage.map_coordinates(padded, [y, x], order=1) > 0.5
    last = inside.shape[0] - inside[::-1].argmax(0)
    return np.where(inside.any(0), last * 0.5, 0.5)


def _split(mask: Mask) -> list[Mask]:
    """Cuts a part at its waists: erodes until it falls apart, then gives every pixel to the
    nearest remnant; one piece if it never falls apart."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    for level in np.arange(1.0, float(depth.max()), 0.5):
        remnants, count = ndimage.label(depth > level)
        sizes = ndimage.sum_labels(mask, remnants, np.arange(1, count + 1))
        if count > 1 and sizes.min() >= CORE / 2:
            index = ndimage.distance_transform_edt(
                remnants == 0, return_distances=False, return_indices=True
            )
            owner = remnants[tuple(index)]
            return [mask & (owner == n) for n in range(1, count + 1)]
    return [mask]
