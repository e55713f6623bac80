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
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import ndimage

from tts_verifier.shapes.grammar import Spec
from tts_verifier.shapes.readers.constraints import Reading, Thing, compare
from tts_verifier.shapes.vocabulary import COLOURS, SIZE
from tts_verifier.types import Box

NEAR: Final = 72.0
"""Largest sRGB distance (0 to 255 a channel) of a pixel from the colour that it belongs to."""
SMALLEST: Final = 60
"""Fewest pixels of a thing, its soft edge included; fewer are a speck."""
FAR: Final = 60.0
"""Least sRGB distance from the background of what is painted."""
CORE: Final = 24
"""Fewest pixels near its colour that a thing has."""
PIECE: Final = 100
"""Fewest pixels of a thing that is not a fragment of one nearby."""
AROUND: Final = 7
"""Side of the square in which pixels agree on a colour, pixels."""
REACH: Final = 6
"""How far a pixel of a part may lie from one that is near its colour, pixels."""
GAP: Final = 2
"""How far a fragment may lie from the part that it broke off, pixels."""
FRAGMENT: Final = 0.3
"""Largest size of a fragment, as a share of the part that it broke off."""
BEARINGS: Final = 60
"""Directions in which an outline is measured."""
TILTS: Final = np.arange(-8, 9) * (np.pi / BEARINGS)
"""Rotations tried, radians: up to 24 degrees either way, in half bearings."""
TRUSTED: Final = 0.75
"""Share of the bearings, the best fitting, that decides."""
STRANGE: Final = 0.12
"""Largest mean log ratio of measured and known radius; beyond, a thing has no known shape."""
HOLLOW: Final = 0.13
"""Least share of a part that its enclosed holes are, for a ring; no other shape has as much."""
RAGGED: Final = 0.16
"""As STRANGE, for a part with such a hole."""
FILLED: Final = (0.6, 1.4)
"""Least and largest area of a part over that of the shape it is taken for."""
HOLE: Final = 0.4
"""Radius of the middle that a ring leaves free, over its outer radius."""

Mask = NDArray[np.bool_]
Window = tuple[slice, slice]
Pixels = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]
_NAMES: Final = tuple(COLOURS)
_PALETTE: Final = np.array(list(COLOURS.values()), np.float32)
_BEARING: Final = np.arange(BEARINGS) * (2 * np.pi / BEARINGS)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Connected pixels of one colour: an index into COLOURS, where the mask lies, the mask.

    `foreign`: far from every colour, so that it may be another's fringe.
    """

    colour: int
    window: Window
    mask: Mask
    foreign: bool = False

    @property
    def size(self) -> int:
        """Pixels."""
        return int(self.mask.sum())


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
    ground = _background(rgb)
    far = _squared(rgb - ground) > FAR**2
    gap = _squared(rgb)[..., None] - 2 * rgb @ _PALETTE.T + _squared(_PALETTE)
    core = far & (gap.min(-1) < NEAR**2)
    label = _labels(gap.argmin(-1), core, far)
    parts = [
        Part(index, window, _sharp(rgb[window], ground[window], mask))
        for index in np.unique(label[core]).tolist()
        for window, mask in _connected(label == index)
        if (mask & core[window]).sum() >= CORE
    ]
    return _things([*parts, *_foreign(rgb, ground, far & (label < 0))])


def _squared(vectors: Pixels) -> Pixels:
    """Returns squared lengths over the last axis."""
    return np.asarray(np.einsum("...c,...c->...", vectors, vectors))


def _labels(nearest: NDArray[np.intp], core: Mask, far: Mask) -> NDArray[np.intp]:
    """Gives each core pixel the colour of most core pixels around it, and each other pixel
    that is far from the background that of the closest core pixel within REACH; -1 = none."""
    present = np.unique(nearest[core])
    if not len(present):
        return np.full(core.shape, -1)
    if len(present) > 1:
        each = ((core & (nearest == k)).astype(np.float32) for k in present)
        votes = [ndimage.uniform_filter(one, AROUND) for one in each]
        nearest = present[np.argmax(votes, 0)]
    distance, (rows, columns) = ndimage.distance_transform_edt(~core, return_indices=True)
    return np.where(far & (distance <= REACH), nearest[rows, columns], -1)


def _connected(mask: Mask) -> list[tuple[Window, Mask]]:
    """Lists the connected parts of a mask."""
    labels, _ = ndimage.label(mask)
    places = ndimage.find_objects(labels)
    return [(place, labels[place] == number) for number, place in enumerate(places, 1)]


def _sharp(rgb: Pixels, ground: Pixels, mask: Mask) -> Mask:
    """Draws a part's soft edge in: keeps pixels more like its own colour than the background."""
    contrast = _squared(rgb - ground)
    inner = mask & (contrast >= np.median(contrast[mask]))
    way = np.median(rgb[inner], axis=0) - ground
    share = ((rgb - ground) * way).sum(-1) / (way * way).sum(-1)
    return np.asarray(mask & (share > 0.5))


def _foreign(rgb: Pixels, ground: Pixels, left: Mask) -> list[Part]:
    """Finds parts far from every colour, pale or mixed. They get the colour that lies in
    their direction from the background."""
    found: list[Part] = []
    for window, mask in _connected(left):
        if mask.sum() >= CORE:
            behind = ground[window][mask].mean(0)
            offset, ways = rgb[window][mask].mean(0) - behind, _PALETTE - behind
            likeness = (ways @ offset) / np.linalg.norm(ways, axis=1)
            found.append(Part(int(likeness.argmax()), window, mask, foreign=True))
    return found


def _background(rgb: Pixels) -> Pixels:
    """Estimates a vertical gradient from the two side columns: (128, 128, 3)."""
    sides = np.concatenate([rgb[:, :3], rgb[:, -3:]], 1)
    rows = np.median(sides, axis=1)
    smooth = ndimage.median_filter(rows, size=(31, 1), mode="nearest")
    return np.broadcast_to(smooth[:, None], rgb.shape)


def _things(parts: Sequence[Part]) -> list[Thing]:
    """Names parts, largest first. One of no known shape that touches a larger one joins it if
    it is a fragment, or if only together they have a known shape."""
    named: list[tuple[Part, str | None]] = []
    taken = np.full((SIZE, SIZE), -1)
    for part in sorted(parts, key=lambda p: -p.size):
        shape = shape_of(part.mask)
        owner = _touched(taken, part) if shape is None or part.size < PIECE else -1
        if owner < 0 and part.size < SMALLEST:
            continue
        if owner < 0:
            named.append((part, shape))
        else:
            large = named[owner][0]
            joint = _joined(large, part)
            together = shape_of(joint.mask)
            if together is not None:
                named[owner] = joint, together
            elif part.size > FRAGMENT * large.size and not part.foreign:
                named.append((part, shape))
        taken[part.window][part.mask] = len(named) - 1 if owner < 0 else owner
    return [t for part, shape in named for t in _split_things(part, shape)]


def _touched(taken: NDArray[np.intp], part: Part) -> int:
    """Returns the largest named part that a part all but touches, -1 = none."""
    gap = GAP + REACH if part.foreign else GAP
    top, left = (max(s.start - gap, 0) for s in part.window)
    near = np.pad(part.mask, gap)
    near = ndimage.binary_dilation(near, iterations=gap)
    near = near[max(gap - part.window[0].start, 0) :, max(gap - part.window[1].start, 0) :]
    around = taken[top : top + near.shape[0], left : left + near.shape[1]]
    owners = around[near[: around.shape[0], : around.shape[1]]]
    owners = owners[owners >= 0]
    return int(owners.min()) if len(owners) else -1


def _joined(large: Part, small: Part) -> Part:
    whole = np.zeros((SIZE, SIZE), bool)
    for part in (large, small):
        whole[part.window] |= part.mask
    rows, columns = (
        slice(min(a.start, b.start), max(a.stop, b.stop))
        for a, b in zip(large.window, small.window, strict=True)
    )
    return Part(large.colour, (rows, columns), whole[rows, columns])


def _split_things(part: Part, shape: str | None) -> list[Thing]:
    """Lists one part, or the pieces it falls into if only those have known shapes."""
    if shape is None:
        pieces = _split(part.mask)
        shapes = [shape_of(piece) for piece in pieces]
        whole = all(piece.sum() >= PIECE for piece in pieces)
        if len(pieces) > 1 and whole and None not in shapes:
            return [_thing(part, p, s) for p, s in zip(pieces, shapes, strict=True)]
    return [_thing(part, part.mask, shape)]


def _thing(part: Part, mask: Mask, shape: str | None) -> Thing:
    top, left = part.window[0].start, part.window[1].start
    rows, columns = np.nonzero(mask)
    box: Box = (
        float(left + columns.min()),
        float(top + rows.min()),
        float(left + columns.max() + 1),
        float(top + rows.max() + 1),
    )
    centre = (float(left + columns.mean() + 0.5), float(top + rows.mean() + 0.5))
    return Thing(shape, _NAMES[part.colour], centre, box)


def shape_of(mask: Mask) -> str | None:
    """Names the shape of a part, (h, w) bool; None if it is none of the known ones."""
    rows, columns = np.nonzero(mask)
    points = np.stack([columns, rows], 1) + 0.0
    middles = (points.mean(0), _steiner(points))
    matches = [_matched(mask, middle) for middle in middles]
    (errors, sizes), middle = min(
        zip(matches, middles, strict=True), key=lambda m: float(m[0][0].min())
    )
    best = int(errors.argmin())
    filled = ndimage.binary_fill_holes(np.pad(mask, 1)).sum()
    if 1 - len(points) / filled > HOLLOW:
        return "ring" if errors[0] < RAGGED else None
    if errors[best] > STRANGE:
        return None
    area = len(points) / sizes[best] ** 2
    near = np.hypot(*(points - middle).T) < HOLE * sizes[best]
    if best == 0 and near.sum() < 0.5 * np.pi * (HOLE * sizes[best]) ** 2:
        return "ring" if FILLED[0] < area / _RING_AREA < FILLED[1] else None
    return _SHAPES[best] if FILLED[0] < area / _AREA[best] < FILLED[1] else None


def _steiner(points: Floats) -> Floats:
    """Returns the Steiner point of the convex hull: a middle that bites hardly move."""
    ways = np.stack([np.cos(_BEARING), np.sin(_BEARING)], 1)
    return np.asarray(2 * ((points @ ways.T).max(0)[:, None] * ways).mean(0))


def _matched(mask: Mask, middle: Floats) -> tuple[Floats, Floats]:
    """Returns each shape's error around a middle, at its best tilt, and its size in pixels."""
    ratio = np.log(_radii(mask, middle)) - _LOG_KNOWN
    size = np.median(ratio, axis=-1, keepdims=True)
    ranked = np.sort(np.abs(ratio - size), axis=-1)[..., : int(TRUSTED * BEARINGS)]
    error = ranked.mean(-1)
    best = error.argmin(-1)
    shape = np.arange(len(_SHAPES))
    return error[shape, best], np.exp(size[shape, best, 0])


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
