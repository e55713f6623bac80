"""Compares the objects that were found in a picture with those that were asked for.

The rules are those of GenEval's `evaluation/evaluate_images.py` (github.com/djghosh13/geneval,
MIT). There, colours are named by CLIP; here, by the median colour of a box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import permutations, product
from math import prod
from typing import Final

import numpy as np
from PIL import Image

from tts_verifier.types import Box
from tts_verifier.verifiers.rules.colours import colour_of
from tts_verifier.verifiers.rules.object_specs import WantedObject

_OVERLAP_ALLOWED: Final = 0.1
"""GenEval's POSITION_THRESHOLD: the share of both sizes by which an offset is shortened."""
_MOST_TRIED: Final = 4
"""Objects of one class in several wishes for which all ways to hand them out are tried."""
_MOST_WAYS: Final = 1000
"""Of all classes together, whose ways multiply."""


@dataclass(frozen=True, slots=True)
class Detected:
    """An object that a detector found."""

    name: str
    """The class."""
    confidence: float
    """In [0, 1]."""
    box: Box
    """In pixels of the picture, inside it."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that a prompt asks for, and how far it holds."""

    text: str
    """What was asked for and what was found."""
    value: float
    """In [0, 1]; 1 = it holds."""
    faults: tuple[Box, ...] = ()
    """The objects that break it."""


def conditions_of(
    wanted: Sequence[WantedObject], found: Sequence[Detected], image: Image.Image
) -> list[Condition]:
    """Returns every condition of a prompt: counts, colours, relations.

    Args:
        wanted: from `parse_objects` or `read_object_specs`.
        found: all objects of a picture.
        image: RGB, for colours.
    """
    groups = [_group(w, found) for w in wanted]
    # Each way to hand the objects out asks for the same colours.
    colour_in = cache(partial(colour_of, image))
    # An object serves one wish: of "a red cat and a blue cat", the red one is not the blue one.
    options = [_conditions(wanted, shared, colour_in) for shared in _shared(wanted, groups)]
    return max(options, key=lambda option: sum(condition.value for condition in option))


def _shared(
    wanted: Sequence[WantedObject], groups: Sequence[Sequence[Detected]]
) -> Iterator[list[Sequence[Detected]]]:
    """Yields groups in which wishes for the same class have objects of their own.

    Where there are few, all ways to hand them out, else the surest objects to the first wish.
    """
    places: dict[str, list[int]] = {}
    for place, want in enumerate(wanted):
        if want.most in (None, want.count) and want.count:
            places.setdefault(want.name, []).append(place)
    ways = [_handed_out(wanted, one, groups[one[0]]) for one in places.values() if len(one) > 1]
    if prod(map(len, ways)) > _MOST_WAYS:
        ways = [some[:1] for some in ways]
    for way in product(*ways):
        shared = list(groups)
        for part in way:
            for place, objects in part.items():
                shared[place] = objects
        yield shared


def _handed_out(
    wanted: Sequence[WantedObject], places: Sequence[int], group: Sequence[Detected]
) -> list[dict[int, list[Detected]]]:
    """Returns ways to hand out the objects of a class to the wishes at some places."""
    owners = [place for place in places for _ in range(wanted[place].count)]
    pool: list[Detected | None] = [*group[: len(owners) + 1]]
    pool += [None] * (len(owners) - len(pool))
    orders = permutations(pool, len(owners)) if len(owners) <= _MOST_TRIED else [pool]
    # What is left over goes to a wish for any number of them, or else is surplus of the last one.
    free = next((place for place in places if wanted[place].most is None), places[-1])
    ways = []
    for order in orders:
        way: dict[int, list[Detected]] = {place: [] for place in places}
        for owner, one in zip(owners, order, strict=False):
            way[owner] += [] if one is None else [one]
        way[free] += [one for one in group if one not in order[: len(owners)]]
        ways.append(way)
    return ways


def _conditions(
    wanted: Sequence[WantedObject],
    groups: Sequence[Sequence[Detected]],
    colour_in: Callable[[Box], str],
) -> list[Condition]:
    conditions = []
    for want, group in zip(wanted, groups, strict=True):
        conditions.append(_count_condition(want, group))
        taken = group[: want.count]
        if want.colour is not None:
            conditions.append(_colour_condition(want, taken, colour_in))
        if want.relation is not None:
            target = wanted[want.target]
            others = groups[want.target][: target.count]
            conditions.append(_relation_condition(want, target, taken, others))
    return conditions


def _group(want: WantedObject, found: Sequence[Detected]) -> list[Detected]:
    """Returns the objects of a class, the surest first."""
    return sorted((d for d in found if d.name == want.name), key=lambda d: -d.confidence)


def _count_condition(want: WantedObject, group: Sequence[Detected]) -> Condition:
    number = len(group)
    too_many = want.most is not None and number > want.most
    if too_many:
        value = want.count / number
    else:
        value = min(number / want.count, 1.0) if want.count else 1.0
    wish = f"{want.count} or more" if want.most is None else f"{want.count}"
    wish = wish if want.count else f"at most {want.most}"
    extra = group[want.most :] if too_many else ()
    return Condition(f"{want.name}: {wish} wanted, {number} found", value, _boxes(extra))


def _colour_condition(
    want: WantedObject, taken: Sequence[Detected], colour_in: Callable[[Box], str]
) -> Condition:
    colours = [colour_in(d.box) for d in taken]
    wrong = [d for d, c in zip(taken, colours, strict=True) if c != want.colour]
    text = f"{want.name}: {want.colour} wanted, {' and '.join(colours) or 'none'} found"
    return Condition(text, (len(taken) - len(wrong)) / want.count, _boxes(wrong))


def _relation_condition(
    want: WantedObject, target: WantedObject, taken: Sequence[Detected], others: Sequence[Detected]
) -> Condition:
    pairs = list(product(taken, others))
    wrong = [one for one, other in pairs if want.relation not in relations(one.box, other.box)]
    held = len(pairs) - len(wrong)
    text = f"{want.name} {want.relation} {target.name}: {held} of {len(pairs)} pairs"
    # Whatever is missing has no place.
    value = held / len(pairs) if pairs else 0.0
    return Condition(text, value, _boxes(dict.fromkeys(wrong)))


def relations(box: Box, other: Box) -> set[str]:
    """Returns where a box lies relative to another: at most two of `PLACES`.

    As `relative_position` of GenEval: the offset of the centres, shortened by a tenth of both
    sizes, must lie within 60 degrees of the direction.
    """
    a, b = np.reshape(box, (2, 2)), np.reshape(other, (2, 2))
    offset = a.mean(axis=0) - b.mean(axis=0)
    sizes = (a[1] - a[0]) + (b[1] - b[0])
    shortened = np.maximum(np.abs(offset) - _OVERLAP_ALLOWED * sizes, 0) * np.sign(offset)
    if np.all(np.abs(shortened) < 1e-3):
        return set()
    dx, dy = shortened / np.linalg.norm(offset)
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in held.items() if holds}


def _boxes(objects: Sequence[Detected] | dict[Detected, None]) -> tuple[Box, ...]:
    return tuple(d.box for d in objects)
