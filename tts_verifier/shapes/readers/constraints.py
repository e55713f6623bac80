"""Compares the things in an image with its caption: the semantics that all readers share.

The truth of a render, the oracle and the judge each find the things in an image in their own way.
What those things mean for a caption is decided here, once.

The score is 1 - (weight of the constraints that fail) / (weight of all), with `WEIGHTS`. It is 1
exactly when the image passes. The faulty regions are the boxes of all things that break a
constraint: one of the wrong shape or colour, one too many, the first object of a relation that
does not hold. If there are too many equal things, any of them may be the surplus, so all are
marked. If a thing is missing, the thing in its place is marked. If nothing is in its place, the
half-plane where the relation requires it is marked; without a relation, nothing is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.shapes.grammar import (
    RELATION_MARGIN,
    Constraint,
    ConstraintKind,
    Noun,
    Spec,
    constraints,
)
from tts_verifier.shapes.vocabulary import SIZE
from tts_verifier.types import Box

WEIGHTS: Final[dict[ConstraintKind, float]] = {
    "object": 2.0,
    "colour": 1.0,
    "count": 2.0,
    "relation": 2.0,
    "nothing_else": 1.0,
}

DIRECTION: Final = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Relation -> unit vector (x, y) from the second object to the first, y down."""

SOFT_RIM: Final = 3.0
"""Pixels over which the map falls from 1 at the edge of a faulty box to 0."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing that a reader found in an image."""

    shape: str | None
    """One of SHAPES; None = none of the known ones."""
    colour: str
    """One of COLOURS."""
    centre: tuple[float, float]
    """(x, y) in pixels of 128."""
    box: Box
    """xyxy in pixels of 128."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """An image compared with its caption."""

    constraints: dict[Constraint, bool]
    """Every constraint of the caption, and whether it holds."""
    things: tuple[Thing, ...]
    """All things in the image."""
    boxes: tuple[Box, ...]
    """Faulty regions, xyxy in pixels of 128."""
    artifact: float = float("nan")
    """Share of the image that no thing explains, in [0, 1]; NaN = not measured by the reader."""

    @property
    def passed(self) -> bool:
        """True when every constraint holds."""
        return all(self.constraints.values())

    @property
    def score(self) -> float:
        """The weighted share of constraints that hold, in [0, 1]."""
        total = sum(WEIGHTS[c.kind] for c in self.constraints)
        return sum(WEIGHTS[c.kind] for c, holds in self.constraints.items() if holds) / total

    def describe(self) -> str:
        """Lists the things and the failed constraints in words."""
        things = ", ".join(
            f"{t.colour} {t.shape or 'thing of no known shape'}" for t in self.things
        )
        failed = ", ".join(c.kind.replace("_", " ") for c, ok in self.constraints.items() if not ok)
        return f"Found: {things or 'nothing'}. Failed: {failed or 'nothing'}."

    @property
    def misalignment(self) -> NDArray[np.float32]:
        """The faulty regions as a map: float32 (128, 128) in [0, 1]."""
        return region_map(self.boxes)


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Converts an image to a reader's input: (128, 128, 3) uint8 sRGB, averaged over areas."""
    small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(small)


def compare(spec: Spec, things: Sequence[Thing], *, artifact: float = float("nan")) -> Reading:
    """Compares the things of an image with a spec; `artifact` is passed on to the reading."""
    check = _check_counting if spec.category == "counting" else _check_nouns
    holds, faulty = check(spec, things)
    # In the order of the caption, and without the colours that it leaves open.
    in_order = {c: holds[c] for c in constraints(spec)}
    return Reading(in_order, tuple(things), tuple(dict.fromkeys(faulty)), artifact)


def _check_counting(
    spec: Spec, things: Sequence[Thing]
) -> tuple[dict[Constraint, bool], list[Box]]:
    noun = spec.nouns[0]
    counted = [t for t in things if t.shape == noun.shape]
    others = [t for t in things if t.shape != noun.shape]
    discoloured = [t for t in counted if not _colour_matches(noun, t)]
    holds = {
        Constraint("object", 0): bool(counted),
        Constraint("colour", 0): bool(counted) and not discoloured,
        Constraint("count", 0): len(counted) == spec.count,
        Constraint("nothing_else"): not others,
    }
    surplus = counted if len(counted) > spec.count else []
    return holds, [t.box for t in (*others, *discoloured, *surplus)]


def _check_nouns(spec: Spec, things: Sequence[Thing]) -> tuple[dict[Constraint, bool], list[Box]]:
    matches = match_nouns(spec, things)
    holds = _holds_for(spec, matches)
    # By identity, because two things that compare equal are still two things.
    others = [t for t in things if not any(t is match for match in matches)]
    holds[Constraint("nothing_else")] = not others
    return holds, [*(t.box for t in others), *_faulty_boxes(spec, matches, holds)]


def match_nouns(spec: Spec, things: Sequence[Thing]) -> tuple[Thing | None, ...]:
    """Assigns a thing to each noun, None = nothing, by the assignment that explains most."""

    def worth(matches: Sequence[Thing | None]) -> float:
        # The weights decide. Ties go to the assignment that uses more things, then to the one
        # with more shapes right.
        holds = [c for c, ok in _holds_for(spec, matches).items() if ok]
        right_shapes = sum(c.kind == "object" for c in holds)
        used = sum(t is not None for t in matches)
        return sum(WEIGHTS[c.kind] for c in holds) + 0.1 * used + 0.01 * right_shapes

    # Each noun may also get nothing, hence as many empty slots as nouns.
    slots: list[Thing | None] = [*things, *[None] * len(spec.nouns)]
    return max(permutations(slots, len(spec.nouns)), key=worth)


def _holds_for(spec: Spec, matches: Sequence[Thing | None]) -> dict[Constraint, bool]:
    """Returns which constraints hold, but for `nothing_else`, with this thing for each noun."""
    holds: dict[Constraint, bool] = {}
    for index, (noun, thing) in enumerate(zip(spec.nouns, matches, strict=True)):
        holds[Constraint("object", index)] = thing is not None and thing.shape == noun.shape
        holds[Constraint("colour", index)] = thing is not None and _colour_matches(noun, thing)
    if spec.relation is not None:
        holds[Constraint("relation")] = _relation_holds(spec.relation, matches[0], matches[1])
    return holds


def _colour_matches(noun: Noun, thing: Thing) -> bool:
    return noun.colour is None or noun.colour == thing.colour


def _relation_holds(relation: str, first: Thing | None, second: Thing | None) -> bool:
    if first is None or second is None:
        return False
    dx, dy = DIRECTION[relation]
    along = (first.centre[0] - second.centre[0]) * dx + (first.centre[1] - second.centre[1]) * dy
    return along > RELATION_MARGIN


def _faulty_boxes(
    spec: Spec, matches: Sequence[Thing | None], holds: dict[Constraint, bool]
) -> list[Box]:
    boxes: list[Box] = []
    for index, thing in enumerate(matches):
        matched = holds[Constraint("object", index)] and holds[Constraint("colour", index)]
        if thing is not None and not matched:
            boxes.append(thing.box)
        if thing is None and spec.relation is not None:
            anchor = matches[1 - index]
            if anchor is not None:
                boxes.append(_half_plane(spec.relation, anchor, first=index == 0))
    first, last = matches[0], matches[-1]
    if not holds.get(Constraint("relation"), True) and first and last:
        boxes.append(first.box)
    return boxes


def _half_plane(relation: str, anchor: Thing, *, first: bool) -> Box:
    """Returns the part of the image where the relation requires the other object.

    Args:
        relation: one of RELATIONS.
        anchor: the object of the relation that is in the image.
        first: whether the missing object is the relation's first.
    """
    dx, dy = DIRECTION[relation] if first else tuple(-d for d in DIRECTION[relation])
    x, y = anchor.centre
    side = float(SIZE)
    if dx:
        return (0.0, 0.0, x, side) if dx < 0 else (x, 0.0, side, side)
    return (0.0, 0.0, side, y) if dy < 0 else (0.0, y, side, side)


def region_map(boxes: Sequence[Box]) -> NDArray[np.float32]:
    """Marks boxes on a map: float32 (128, 128), 1 inside, falling to 0 over `SOFT_RIM` pixels."""
    at = np.arange(SIZE, dtype=np.float32) + 0.5
    marked = np.zeros((SIZE, SIZE), np.float32)
    for x1, y1, x2, y2 in boxes:
        # The distance to the nearer edge, negative outside the box.
        across = np.clip(np.minimum(at - x1, x2 - at) / SOFT_RIM + 1, 0, 1)
        down = np.clip(np.minimum(at - y1, y2 - at) / SOFT_RIM + 1, 0, 1)
        np.maximum(marked, down[:, None] * across[None, :], out=marked)
    return marked
