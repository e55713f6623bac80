"""The replies that the verifier is trained to give: describe, compare, point, then score.

A model of random weights learns to look at the image only if its reply requires it. The reasoning
therefore lists every object with its place, goes through the caption's constraints one by one, adds
them up, and points at the faulty regions. The answer follows in the official grammar (ImageDoctor,
inference.py, and the reward's regular expressions, which require a ';' after three of the scores).

    <think>
    Objects:#1 red circle 120 264 96#2 green square 400 304 120
    Checks: red circle - red circle 120 264 ok; blue square - green square 400 304 wrong
    colour; left of 120 400 ok; nothing else ok; 6/7
    I need to focus on the bounding box area. Proposed regions (xyxy): 1.[336,240,464,368]
    misaligned</think>
    <answer>Semantic Alignment score: 0.86; ...

The example is wrapped: a reply has line breaks only before "Checks:", "I need" and "<answer>", and
after "<think>". An object is described by its colour, shape, centre and larger side. All numbers
are in the 512-pixel frame, rounded to 8. The sum of the checks uses `constraints.WEIGHTS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tts_verifier.shapes.artifacts import ARTIFACT_KINDS
from tts_verifier.shapes.grammar import Constraint, Noun, Spec, constraints
from tts_verifier.shapes.readers.constraints import WEIGHTS, Reading, Thing, match_nouns
from tts_verifier.shapes.vocabulary import COUNTS, SIZE
from tts_verifier.training.verifier.answers import (
    ANSWER_END,
    ANSWER_START,
    LOCATION_LABELS,
    SCORE_LABELS,
)
from tts_verifier.types import Box

FRAME: Final = 512
"""Side of the square that coordinates refer to, whatever the size of the image."""
COORDINATE_STEP: Final = 8
"""Coordinates are multiples of this, so each is a single token."""
OBJECTS_START: Final = "<think>\nObjects:"
CHECKS_START: Final = "\nChecks:"
REGIONS_START: Final = "\nI need to focus on the bounding box area. Proposed regions (xyxy): "
MAX_REGIONS: Final = 6
MAX_OBJECTS: Final = 9
VERDICTS: Final = (" ok;", " wrong;", " wrong shape;", " wrong colour;", " missing;")
MISALIGNED: Final = "misaligned"

PHRASES: Final = (
    OBJECTS_START,
    CHECKS_START,
    REGIONS_START,
    "none",
    " none",
    " nothing else",
    " -",
    *VERDICTS,
    *(f"#{n}" for n in range(1, MAX_OBJECTS + 1)),
    *(f"{start}{n}.[" for n in range(1, MAX_REGIONS + 1) for start in ("", ";")),
    *(f"] {what}" for what in (MISALIGNED, *ARTIFACT_KINDS)),
    " left of",
    " right of",
    ANSWER_START,
    *SCORE_LABELS.values(),
    *(label.partition("<|")[0] for label in LOCATION_LABELS.values()),
    ANSWER_END,
)
"""The fixed parts of a reply, each a single token of the bundled tokenizer."""

FaultyRegion = tuple[Box, str]
"""A box in pixels of 128, and its fault: `MISALIGNED` or one of ARTIFACT_KINDS."""


def objects_text(things: Sequence[Thing]) -> str:
    """Lists the objects from top to bottom, the first `MAX_OBJECTS` of them."""
    ordered = sorted(things, key=lambda t: (_to_frame(t.centre[1]), t.centre[0]))[:MAX_OBJECTS]
    parts = [f"#{n} {t.colour} {_shape_text(t)} {_place_text(t)}" for n, t in enumerate(ordered, 1)]
    return OBJECTS_START + ("".join(parts) or " none")


def checks_text(spec: Spec, reading: Reading) -> str:
    """Lists the constraints: what the caption requires, what the image shows, if they agree."""
    holds = reading.constraints
    check = _counting_checks if spec.category == "counting" else _noun_checks
    parts = check(spec, reading)
    parts.append(f" nothing else{_verdict_text(holds[Constraint('nothing_else')])}")
    total = sum(WEIGHTS[c.kind] for c in constraints(spec))
    fulfilled = sum(WEIGHTS[c.kind] for c, ok in holds.items() if ok)
    return f"{CHECKS_START}{''.join(parts)} {fulfilled:.0f}/{total:.0f}"


def regions_text(regions: Sequence[FaultyRegion]) -> str:
    """Numbers the faulty boxes, as `x1,y1,x2,y2` in the 512-pixel frame."""
    parts = []
    for number, (box, fault) in enumerate(regions[:MAX_REGIONS], 1):
        corners = ",".join(map(str, quantise_box(box)))
        parts.append(f"{number}.[{corners}] {fault}")
    return REGIONS_START + (";".join(parts) or "none")


def faulty_regions(
    reading: Reading, artifact: Box | None = None, kind: str = ""
) -> list[FaultyRegion]:
    """Lists the misaligned regions from top to bottom, then the artifact if there is one."""
    # Sorted, so that a reply does not depend on the order in which the regions were found.
    ordered = sorted(reading.boxes, key=lambda b: (b[1] + b[3], b[0]))
    regions: list[FaultyRegion] = [(box, MISALIGNED) for box in ordered]
    return regions if artifact is None else [*regions, (artifact, kind)]


def reasoning_text(spec: Spec, reading: Reading, regions: Sequence[FaultyRegion]) -> str:
    """Returns the whole reasoning, from <think> up to </think>."""
    return objects_text(reading.things) + checks_text(spec, reading) + regions_text(regions)


def quantise_box(box: Box) -> tuple[int, int, int, int]:
    """Maps a box in pixels of 128 to multiples of 8 of the 512-pixel frame, at least 8 wide."""
    # The lower corner leaves room for one step, so that a box at the border is not empty.
    x1, y1 = (min(_to_frame(v), FRAME - COORDINATE_STEP) for v in box[:2])
    x2, y2 = (max(_to_frame(v), low + COORDINATE_STEP) for v, low in ((box[2], x1), (box[3], y1)))
    return x1, y1, x2, y2


def _to_frame(value: float) -> int:
    rounded = round(value * FRAME / SIZE / COORDINATE_STEP) * COORDINATE_STEP
    return min(max(rounded, 0), FRAME)


def _shape_text(thing: Thing) -> str:
    return thing.shape or "none"


def _place_text(thing: Thing) -> str:
    x1, y1, x2, y2 = thing.box
    side = _to_frame(max(x2 - x1, y2 - y1))
    return f"{_to_frame(thing.centre[0])} {_to_frame(thing.centre[1])} {side}"


def _noun_phrase(noun: Noun) -> str:
    return f" {noun.colour} {noun.shape}" if noun.colour else f" {noun.shape}"


def _verdict_text(holds: bool) -> str:
    return " ok;" if holds else " wrong;"


def _counting_checks(spec: Spec, reading: Reading) -> list[str]:
    noun, holds = spec.nouns[0], reading.constraints
    count = sum(thing.shape == noun.shape for thing in reading.things)
    parts = [f" {COUNTS[spec.count - 1]}{_noun_phrase(noun)} - {count}"]
    parts.append(_verdict_text(holds[Constraint("count", 0)]))
    if noun.colour:
        parts.append(f" {noun.colour}{_verdict_text(holds[Constraint('colour', 0)])}")
    return parts


def _noun_checks(spec: Spec, reading: Reading) -> list[str]:
    matches = match_nouns(spec, reading.things)
    parts = []
    for index, (noun, thing) in enumerate(zip(spec.nouns, matches, strict=True)):
        parts.append(f"{_noun_phrase(noun)} -{_match_text(index, thing, reading.constraints)}")
    if spec.relation is not None:
        axis = 0 if spec.relation in ("left of", "right of") else 1
        at = [" none" if t is None else f" {_to_frame(t.centre[axis])}" for t in matches]
        right = reading.constraints[Constraint("relation")]
        parts.append(f" {spec.relation}{at[0]}{at[1]}{_verdict_text(right)}")
    return parts


def _match_text(index: int, thing: Thing | None, holds: Mapping[Constraint, bool]) -> str:
    """Describes the thing that was matched with a noun, and whether shape and colour are right."""
    if thing is None:
        return " missing;"
    shape = holds[Constraint("object", index)]
    colour = holds.get(Constraint("colour", index), True)
    verdict = _verdict_text(shape or colour)
    if shape != colour:
        verdict = " wrong colour;" if shape else " wrong shape;"
    x, y = (_to_frame(v) for v in thing.centre)
    return f" {thing.colour} {_shape_text(thing)} {x} {y}{verdict}"
