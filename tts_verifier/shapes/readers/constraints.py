"""What a picture shows against what its caption asks: the meaning that all readers share.

The truth of a render, the oracle and the judge each find the things in a picture in their own
way; what those things mean for a caption is decided here, once.

The score is 1 - (weight of the constraints that fail) / (weight of all), with `WEIGHTS`: 1
exactly when the picture passes. The faulty region is every thing that breaks a constraint:
one of the wrong shape or colour, one too many, the first object of a relation that does not
hold. Of too many equal things each may be the surplus, so all are marked. Where a thing is
missing, what stands in its place is marked, else the half-plane where the relation wants it,
else nothing.
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

GROWN: Final = 3.0
"""Pixels by which a faulty box is grown before it is marked on the map."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing found in a picture; `shape` None = none of the known ones.

    `centre`: (x, y), `box`: xyxy, both in pixels of 128.
    """

    shape: str | None
    colour: str
    centre: tuple[float, float]
    box: Box


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A picture held against its caption.

    `constraints`: which hold. `things`: all that was found. `boxes`: faulty regions, xyxy in
    pixels of 128. `artifact`: share of the picture that no thing explains, in [0, 1], NaN
    from readers that do not measure it.
    """

    constraints: dict[Constraint, bool]
    things: tuple[Thing, ...]
    boxes: tuple[Box, ...]
    artifact: float = float("nan")

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
        """Lists what was found and which constraints fail, in words."""
        found = ", ".join(f"{t.colour} {t.shape or 'thing of no known shape'}" for t in self.things)
        failed = ", ".join(c.kind.replace("_", " ") for c, ok in self.constraints.items() if not ok)
        return f"Found: {found or 'nothing'}. Failed: {failed or 'nothing'}."

    @property
    def misalignment(self) -> NDArray[np.float32]:
        """The faulty regions as a map: float32 (128, 128) in [0, 1]."""
        return region_map(self.boxes)


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Returns what readers look at: (128, 128, 3) uint8 sRGB, averaged over areas."""
    small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(small)


def compare(spec: Spec, things: Sequence[Thing], *, artifact: float = float("nan")) -> Reading:
    """Holds the things of a picture against a spec."""
    if spec.category == "counting":
        holds, faulty = _counted(spec, things)
    else:
        holds, faulty = _placed(spec, things)
    result = {c: holds[c] for c in constraints(spec)}
    return Reading(result, tuple(things), tuple(dict.fromkeys(faulty)), artifact)


def _counted(spec: Spec, things: Sequence[Thing]) -> tuple[dict[Constraint, bool], list[Box]]:
    noun = spec.nouns[0]
    right = [t for t in things if t.shape == noun.shape]
    other = [t for t in things if t.shape != noun.shape]
    discoloured = [t for t in right if noun.colour not in (None, t.colour)]
    holds = {
        Constraint("object", 0): bool(right),
        Constraint("colour", 0): bool(right) and not discoloured,
        Constraint("count", 0): len(right) == spec.count,
        Constraint("nothing_else"): not other,
    }
    surplus = right if len(right) > spec.count else []
    return holds, [t.box for t in (*other, *discoloured, *surplus)]


def _placed(spec: Spec, things: Sequence[Thing]) -> tuple[dict[Constraint, bool], list[Box]]:
    chosen = taken_for(spec, things)
    holds = _as_taken(spec, chosen)
    left = [t for t in things if not any(t is c for c in chosen)]
    holds[Constraint("nothing_else")] = not left
    return holds, [*(t.box for t in left), *_faulty(spec, chosen, holds)]


def taken_for(spec: Spec, things: Sequence[Thing]) -> tuple[Thing | None, ...]:
    """Decides which thing is taken for which noun, None = nothing: what explains most."""

    def worth(taken: Sequence[Thing | None]) -> float:
        holds = [c for c, ok in _as_taken(spec, taken).items() if ok]
        right = sum(c.kind == "object" for c in holds)
        used = sum(t is not None for t in taken)
        return sum(WEIGHTS[c.kind] for c in holds) + 0.1 * used + 0.01 * right

    slots: list[Thing | None] = [*things, *[None] * len(spec.nouns)]
    return max(permutations(slots, len(spec.nouns)), key=worth)


def _as_taken(spec: Spec, taken: Sequence[Thing | None]) -> dict[Constraint, bool]:
    holds: dict[Constraint, bool] = {}
    for index, (noun, thing) in enumerate(zip(spec.nouns, taken, strict=True)):
        holds[Constraint("object", index)] = thing is not None and thing.shape == noun.shape
        holds[Constraint("colour", index)] = thing is not None and _coloured(noun, thing)
    if spec.relation is not None:
        first, second = taken[0], taken[1]
        known = first is not None and second is not None
        holds[Constraint("relation")] = known and _related(spec.relation, first, second)
    return holds


def _coloured(noun: Noun, thing: Thing) -> bool:
    return noun.colour is None or noun.colour == thing.colour


def _related(relation: str, first: Thing | None, second: Thing | None) -> bool:
    if first is None or second is None:
        return False
    dx, dy = DIRECTION[relation]
    along = (first.centre[0] - second.centre[0]) * dx + (first.centre[1] - second.centre[1]) * dy
    return along > RELATION_MARGIN


def _faulty(spec: Spec, taken: Sequence[Thing | None], holds: dict[Constraint, bool]) -> list[Box]:
    boxes: list[Box] = []
    for index, thing in enumerate(taken):
        fine = holds[Constraint("object", index)] and holds[Constraint("colour", index)]
        if thing is not None and not fine:
            boxes.append(thing.box)
        if thing is None and spec.relation is not None:
            anchor = taken[1 - index]
            if anchor is not None:
                boxes.append(_half_plane(spec.relation, anchor, first=index == 0))
    moved, anchor = taken[0], taken[-1]
    if not holds.get(Constraint("relation"), True) and moved and anchor:
        boxes.append(moved.box)
    return boxes


def _half_plane(relation: str, anchor: Thing, *, first: bool) -> Box:
    """Returns the part of the picture where the relation wants the other object."""
    dx, dy = DIRECTION[relation] if first else tuple(-d for d in DIRECTION[relation])
    x, y = anchor.centre
    side = float(SIZE)
    if dx:
        return (0.0, 0.0, x, side) if dx < 0 else (x, 0.0, side, side)
    return (0.0, 0.0, side, y) if dy < 0 else (0.0, y, side, side)


def region_map(boxes: Sequence[Box]) -> NDArray[np.float32]:
    """Marks boxes on a map: float32 (128, 128), 1 inside, falling to 0 over `GROWN` pixels."""
    at = np.arange(SIZE, dtype=np.float32) + 0.5
    out = np.zeros((SIZE, SIZE), np.float32)
    for x1, y1, x2, y2 in boxes:
        across = np.clip(np.minimum(at - x1, x2 - at) / GROWN + 1, 0, 1)
        down = np.clip(np.minimum(at - y1, y2 - at) / GROWN + 1, 0, 1)
        np.maximum(out, down[:, None] * across[None, :], out=out)
    return out
