"""The oracle reads an image by colour, connected components and geometry, to label training data.

It works on pixels alone:

1. A pixel belongs to a colour when it lies near it in sRGB.
2. Connected pixels of one colour are a component.
3. A component's outline, its farthest distance from the middle as a function of the bearing,
   is compared with the polar outline of each shape. The quarter of the bearings that fits
   worst is left out, so that a bite or a smear does not hide the shape.
4. Fragments close to a larger component of their colour count as pieces broken off it.
5. A component of no known shape is cut at its waists, in case several things touch.

Every tolerance is a constant below, frozen before the bundled generator was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tts_verifier.shapes.grammar import Spec
from tts_verifier.shapes.readers.constraints import Reading, Thing, compare
from tts_verifier.shapes.vocabulary import COLOURS, SIZE
from tts_verifier.types import Box

NEAR_COLOUR: Final = 72.0
"""Largest sRGB distance (0 to 255 a channel) of a pixel from the colour that it belongs to."""
OFF_BACKGROUND: Final = 60.0
"""Least sRGB distance of a painted pixel from the background."""
MIN_THING: Final = 60
"""Fewest pixels of a thing, its soft edge included; a smaller component is a speck."""
MIN_CORE: Final = 24
"""Fewest pixels near its colour that a thing has."""
MIN_PIECE: Final = 100
"""Fewest pixels of a thing that cannot be a fragment of one nearby."""
VOTE_SIDE: Final = 7
"""Side of the square in which pixels agree on a colour, in pixels."""
COLOUR_REACH: Final = 6
"""How far a pixel of a component may lie from one that is near its colour, in pixels."""
FRAGMENT_GAP: Final = 2
"""How far a fragment may lie from the component that it broke off, in pixels."""
MAX_FRAGMENT: Final = 0.3
"""Largest size of a fragment, as a share of the component that it broke off."""
BEARINGS: Final = 60
"""Number of directions in which an outline is measured."""
OUTLINE_TILTS: Final = np.arange(-8, 9) * (np.pi / BEARINGS)
"""Rotations tried, in radians: up to 24 degrees either way, in half bearings."""
TRUSTED: Final = 0.75
"""Share of the bearings that decides: those that fit best."""
MAX_ERROR: Final = 0.12
"""Largest mean log ratio of measured and known radius; beyond it, no shape is known."""
MIN_RING_HOLE: Final = 0.13
"""Least share of enclosed holes in the area of a ring; no other shape has as much."""
MAX_RING_ERROR: Final = 0.16
"""As MAX_ERROR, for a component with such a hole."""
AREA_RATIO: Final = (0.6, 1.4)
"""Least and largest area of a component over the area of the shape that it is taken for."""
RING_HOLE: Final = 0.4
"""Radius of the free middle of a ring, over its outer radius."""

BoolMap = NDArray[np.bool_]
Window = tuple[slice, slice]
"""Rows and columns of a rectangle of the image."""
RgbArray = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]
_COLOUR_NAMES: Final = tuple(COLOURS)
_PALETTE: Final = np.array(list(COLOURS.values()), np.float32)
_BEARING: Final = np.arange(BEARINGS) * (2 * np.pi / BEARINGS)


@dataclass(frozen=True, slots=True, eq=False)
class Component:
    """Connected pixels of one colour."""

    colour: int
    """Index into COLOURS."""
    window: Window
    """Where the mask lies in the image."""
    mask: BoolMap
    """(rows, columns) of the window, True = belongs to the component."""
    foreign: bool = False
    """True for pixels far from every colour, which may be the fringe of another thing."""

    @property
    def size(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())


def read_by_geometry(pixels: NDArray[np.uint8], spec: Spec) -> Reading:
    """Reads an image, (128, 128, 3) uint8 sRGB, against a spec."""
    return compare(spec, find_things(pixels))


def find_things(pixels: NDArray[np.uint8]) -> list[Thing]:
    """Finds the things in an image, (128, 128, 3) uint8 sRGB."""
    rgb = pixels.astype(np.float32)
    background = _side_gradient(rgb)
    painted = _squared_norm(rgb - background) > OFF_BACKGROUND**2
    # |rgb - colour|^2, expanded: one matrix product instead of a (128, 128, 8, 3) array.
    distance = _squared_norm(rgb)[..., None] - 2 * rgb @ _PALETTE.T + _squared_norm(_PALETTE)
    core = painted & (distance.min(-1) < NEAR_COLOUR**2)
    label = _label_colours(distance.argmin(-1), core, painted)
    components = [
        Component(index, window, _without_soft_edge(rgb[window], background[window], mask))
        for index in np.unique(label[core]).tolist()
        for window, mask in _connected(label == index)
        if (mask & core[window]).sum() >= MIN_CORE
    ]
    return _name_things([*components, *_foreign(rgb, background, painted & (label < 0))])


# -- from pixels to components -------------------------------------------------------------


def _squared_norm(vectors: RgbArray) -> RgbArray:
    """Returns squared lengths over the last axis."""
    return np.asarray(np.einsum("...c,...c->...", vectors, vectors))


def _side_gradient(rgb: RgbArray) -> RgbArray:
    """Estimates the background as a vertical gradient from both side columns: (128, 128, 3)."""
    # Scenes keep their objects three pixels off the border.
    sides = np.concatenate([rgb[:, :3], rgb[:, -3:]], 1)
    rows = np.median(sides, axis=1)
    smooth = ndimage.median_filter(rows, size=(31, 1), mode="nearest")
    return np.broadcast_to(smooth[:, None], rgb.shape)


def _label_colours(nearest: NDArray[np.intp], core: BoolMap, painted: BoolMap) -> NDArray[np.intp]:
    """Labels painted pixels with a colour's index, -1 = none.

    A core pixel gets the colour of most core pixels around it. Any other painted pixel gets
    that of the closest core pixel within COLOUR_REACH.
    """
    present = np.unique(nearest[core])
    if not len(present):
        return np.full(core.shape, -1)
    if len(present) > 1:
        each = ((core & (nearest == k)).astype(np.float32) for k in present)
        votes = [ndimage.uniform_filter(share, VOTE_SIDE) for share in each]
        nearest = present[np.argmax(votes, 0)]
    distance, (rows, columns) = ndimage.distance_transform_edt(~core, return_indices=True)
    return np.where(painted & (distance <= COLOUR_REACH), nearest[rows, columns], -1)


def _connected(mask: BoolMap) -> list[tuple[Window, BoolMap]]:
    """Lists the connected parts of a mask, each with its window."""
    labels, _ = ndimage.label(mask)
    windows = ndimage.find_objects(labels)
    return [(window, labels[window] == number) for number, window in enumerate(windows, 1)]


def _without_soft_edge(rgb: RgbArray, background: RgbArray, mask: BoolMap) -> BoolMap:
    """Keeps the pixels of a mask that are more like its own colour than the background."""
    contrast = _squared_norm(rgb - background)
    # The half with the most contrast has the thing's own colour, not that of its soft edge.
    inner = mask & (contrast >= np.median(contrast[mask]))
    to_colour = np.median(rgb[inner], axis=0) - background
    share = ((rgb - background) * to_colour).sum(-1) / (to_colour * to_colour).sum(-1)
    return np.asarray(mask & (share > 0.5))


def _foreign(rgb: RgbArray, background: RgbArray, unlabelled: BoolMap) -> list[Component]:
    """Finds components far from every colour, pale or mixed.

    Each gets the colour that lies in its direction from the background.
    """
    components: list[Component] = []
    for window, mask in _connected(unlabelled):
        if mask.sum() >= MIN_CORE:
            behind = background[window][mask].mean(0)
            offset, to_colours = rgb[window][mask].mean(0) - behind, _PALETTE - behind
            likeness = (to_colours @ offset) / np.linalg.norm(to_colours, axis=1)
            components.append(Component(int(likeness.argmax()), window, mask, foreign=True))
    return components


# -- from components to things -------------------------------------------------------------


def _name_things(components: Sequence[Component]) -> list[Thing]:
    """Names components, largest first.

    A component of no known shape joins a larger one that it touches if it is a fragment, or if
    only the two together have a known shape.
    """
    # Largest first, so that fragments find the thing that they broke off already named.
    named: list[tuple[Component, str | None]] = []
    owner_map = np.full((SIZE, SIZE), -1)
    for component in sorted(components, key=lambda c: -c.size):
        shape = name_shape(component.mask)
        may_be_fragment = shape is None or component.size < MIN_PIECE
        owner = _touched_owner(owner_map, component) if may_be_fragment else -1
        if owner < 0 and component.size < MIN_THING:
            continue
        if owner < 0:
            named.append((component, shape))
        else:
            large = named[owner][0]
            joint = _union(large, component)
            joint_shape = name_shape(joint.mask)
            if joint_shape is not None:
                named[owner] = joint, joint_shape
            elif component.size > MAX_FRAGMENT * large.size and not component.foreign:
                named.append((component, shape))
        owner_map[component.window][component.mask] = len(named) - 1 if owner < 0 else owner
    return [t for component, shape in named for t in _things_of(component, shape)]


def _touched_owner(owner_map: NDArray[np.intp], component: Component) -> int:
    """Returns the index of the largest named component within the gap, -1 = none."""
    # A foreign component is farther than COLOUR_REACH from every pixel near a colour, so its gap
    # is counted beyond that.
    gap = FRAGMENT_GAP + COLOUR_REACH if component.foreign else FRAGMENT_GAP
    top, left = (max(s.start - gap, 0) for s in component.window)
    near = np.pad(component.mask, gap)
    near = ndimage.binary_dilation(near, iterations=gap)
    # The dilated mask may stick out of the image, so it is cut to the part inside.
    near = near[
        max(gap - component.window[0].start, 0) :, max(gap - component.window[1].start, 0) :
    ]
    around = owner_map[top : top + near.shape[0], left : left + near.shape[1]]
    owners = around[near[: around.shape[0], : around.shape[1]]]
    owners = owners[owners >= 0]
    # Components are named largest first, so the smallest index is the largest component.
    return int(owners.min()) if len(owners) else -1


def _union(large: Component, small: Component) -> Component:
    """Merges two components; the colour is the larger one's."""
    whole = np.zeros((SIZE, SIZE), bool)
    for component in (large, small):
        whole[component.window] |= component.mask
    rows, columns = (
        slice(min(a.start, b.start), max(a.stop, b.stop))
        for a, b in zip(large.window, small.window, strict=True)
    )
    return Component(large.colour, (rows, columns), whole[rows, columns])


def _things_of(component: Component, shape: str | None) -> list[Thing]:
    """Returns one thing, or the pieces that a component falls into if all have known shapes."""
    if shape is None:
        pieces = _split_at_waists(component.mask)
        shapes = [name_shape(piece) for piece in pieces]
        # Only if every piece has a known shape: otherwise the waist was damage.
        large_enough = all(piece.sum() >= MIN_PIECE for piece in pieces)
        if len(pieces) > 1 and large_enough and None not in shapes:
            return [_measure_thing(component, p, s) for p, s in zip(pieces, shapes, strict=True)]
    return [_measure_thing(component, component.mask, shape)]


def _measure_thing(component: Component, mask: BoolMap, shape: str | None) -> Thing:
    top, left = component.window[0].start, component.window[1].start
    rows, columns = np.nonzero(mask)
    box: Box = (
        float(left + columns.min()),
        float(top + rows.min()),
        float(left + columns.max() + 1),
        float(top + rows.max() + 1),
    )
    centre = (float(left + columns.mean() + 0.5), float(top + rows.mean() + 0.5))
    return Thing(shape, _COLOUR_NAMES[component.colour], centre, box)


def _split_at_waists(mask: BoolMap) -> list[BoolMap]:
    """Cuts a mask at its waists.

    The mask is eroded until it falls apart; every pixel then goes to the nearest remnant. A
    mask that never falls apart stays whole.
    """
    # Padded, so that the edge of the window counts as outside.
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    for level in np.arange(1.0, float(depth.max()), 0.5):
        remnants, count = ndimage.label(depth > level)
        sizes = ndimage.sum_labels(mask, remnants, np.arange(1, count + 1))
        if count > 1 and sizes.min() >= MIN_CORE / 2:
            index = ndimage.distance_transform_edt(
                remnants == 0, return_distances=False, return_indices=True
            )
            owner = remnants[tuple(index)]
            return [mask & (owner == n) for n in range(1, count + 1)]
    return [mask]


# -- shapes by their outline ---------------------------------------------------------------


def _outline(name: str, bearing: Floats) -> Floats:
    """Returns a shape's radius by bearing (radians, clockwise from the right), 1 = its size."""
    cos, sin = np.abs(np.cos(bearing)), np.abs(np.sin(bearing))
    if name == "square":
        return np.asarray(1 / np.maximum(cos, sin))
    if name == "cross":
        long, wide = np.maximum(cos, sin), np.minimum(cos, sin)
        # Half an arm's width over its length, 0.31 / 0.95 in the renderer.
        return np.asarray(np.minimum(1 / long, 0.33 / np.maximum(wide, 1e-9)))
    if name == "triangle":
        third = 2 * np.pi / 3
        folded = (bearing - np.pi / 2 + third / 2) % third - third / 2
        return np.asarray(1 / np.cos(folded))
    if name == "star":
        # A notch's radius over a point's, 0.46 / 1.05 in the renderer.
        fifth, notch = 2 * np.pi / 5, 0.44
        folded = np.abs((bearing + np.pi / 2 + fifth / 2) % fifth - fifth / 2)
        half = fifth / 2
        across = np.sin(folded) + notch * np.sin(half - folded)
        return np.asarray(notch * np.sin(half) / across)
    return np.ones_like(bearing)


# A ring has the outline of a circle, so it is told apart by its hole.
_OUTLINE_SHAPES: Final = ("circle", "square", "triangle", "star", "cross")
_LOG_OUTLINES: Final = np.log(
    [[_outline(n, _BEARING - t) for t in OUTLINE_TILTS] for n in _OUTLINE_SHAPES]
)
# The area inside an outline is half the integral of the squared radius over the bearing.
_AREAS: Final = np.array([(_outline(n, _BEARING) ** 2).mean() * np.pi for n in _OUTLINE_SHAPES])
# 1 - (inner / outer radius)^2, with the radii 0.49 and 0.95 of the renderer.
_RING_AREA: Final = 0.73 * np.pi


def name_shape(mask: BoolMap) -> str | None:
    """Names the shape of a mask, (rows, columns) bool; None = none of the known ones."""
    rows, columns = np.nonzero(mask)
    points = np.stack([columns, rows], 1) + 0.0
    # The mean suits whole shapes, the Steiner point damaged ones: the better match counts.
    middles = (points.mean(0), _steiner_point(points))
    matches = [_match_outlines(mask, middle) for middle in middles]
    (errors, sizes), middle = min(
        zip(matches, middles, strict=True), key=lambda m: float(m[0][0].min())
    )
    best = int(errors.argmin())
    filled = ndimage.binary_fill_holes(np.pad(mask, 1)).sum()
    if 1 - len(points) / filled > MIN_RING_HOLE:
        # errors[0] is the circle's, whose outline a ring has.
        return "ring" if errors[0] < MAX_RING_ERROR else None
    if errors[best] > MAX_ERROR:
        return None
    area = len(points) / sizes[best] ** 2
    near = np.hypot(*(points - middle).T) < RING_HOLE * sizes[best]
    # A broken ring encloses no hole, but its middle is still mostly empty.
    if best == 0 and near.sum() < 0.5 * np.pi * (RING_HOLE * sizes[best]) ** 2:
        return "ring" if AREA_RATIO[0] < area / _RING_AREA < AREA_RATIO[1] else None
    fits = AREA_RATIO[0] < area / _AREAS[best] < AREA_RATIO[1]
    return _OUTLINE_SHAPES[best] if fits else None


def _steiner_point(points: Floats) -> Floats:
    """Returns the Steiner point of the convex hull: a middle that bites hardly move."""
    directions = np.stack([np.cos(_BEARING), np.sin(_BEARING)], 1)
    support = (points @ directions.T).max(0)
    return np.asarray(2 * (support[:, None] * directions).mean(0))


def _match_outlines(mask: BoolMap, middle: Floats) -> tuple[Floats, Floats]:
    """Returns each shape's error around a middle, at its best tilt, and its size in pixels."""
    ratio = np.log(_radius_by_bearing(mask, middle)) - _LOG_OUTLINES
    # In logarithms the size is an offset, and its median hardly notices a bite or a smear.
    size = np.median(ratio, axis=-1, keepdims=True)
    ranked = np.sort(np.abs(ratio - size), axis=-1)[..., : int(TRUSTED * BEARINGS)]
    error = ranked.mean(-1)
    best = error.argmin(-1)
    shape = np.arange(len(_OUTLINE_SHAPES))
    return error[shape, best], np.exp(size[shape, best, 0])


def _radius_by_bearing(mask: BoolMap, middle: Floats) -> Floats:
    """Measures how far a mask reaches from a middle (x, y): (BEARINGS,) pixels."""
    padded = np.pad(mask.astype(np.float32), 2)
    # In steps of half a pixel, up to the mask's diagonal; the 2 below are the padding.
    steps = np.arange(0.5, np.hypot(*mask.shape), 0.5)[:, None]
    x = middle[0] + 2 + steps * np.cos(_BEARING)
    y = middle[1] + 2 + steps * np.sin(_BEARING)
    inside = ndimage.map_coordinates(padded, [y, x], order=1) > 0.5
    # The farthest step inside, so that holes and bites on the way do not count.
    last = inside.shape[0] - inside[::-1].argmax(0)
    # At least one step, because the logarithm of the radius is taken.
    return np.where(inside.any(0), last * 0.5, 0.5)
