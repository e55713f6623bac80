"""What the verifier should answer: look, compare, point, then score.

A model that starts from nothing learns to look only when its reply makes it look, so the
reasoning lists every object with its place, goes through the caption's constraints one by
one, adds them up, and points at the faulty regions; the answer follows in the official
grammar (ImageDoctor, inference.py, and the reward's regular expressions, which want a ';'
after three of the scores).

    <think>
    Objects:#1 red circle 120 264 96#2 green square 400 304 120
    Checks: red circle - red circle 120 264 ok; blue square - green square 400 304 wrong
    colour; left of 120 400 ok; nothing else ok; 6/7
    I need to focus on the bounding box area. Proposed regions (xyxy): 1.[336,240,464,368]
    misaligned</think>
    <answer>Semantic Alignment score: 0.86; ...

(without the breaks inside). An object is colour, shape, centre and larger side; all numbers
are in the 512-px frame, rounded to 8. The sum of checks is by `reading.WEIGHTS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from tts_verifier.shapes.artifacts import ARTIFACT_KINDS
from tts_verifier.shapes.grammar import Constraint, Noun, Spec, constraints
from tts_verifier.shapes.readers.constraints import WEIGHTS, Reading, Thing, match_nouns
from tts_verifier.shapes.vocabulary import COUNTS, SIZE
from tts_verifier.types import Box

FRAME: Final = 512
STEP: Final = 8
LOOK: Final = "<think>\nObjects:"
CHECKS: Final = "\nChecks:"
REGIONS: Final = "\nI need to focus on the bounding box area. Proposed regions (xyxy): "
ANSWER: Final = "</think>\n<answer>"
END: Final = "</answer>"
NAMES: Final = {
    "semantic_alignment": "Semantic Alignment score: ",
    "aesthetics": "; Aesthetic score: ",
    "plausibility": "; Plausibility score: ",
    "overall": "; Overall Impression score: ",
}
"""Score -> the words before its number."""
LOCATIONS: Final = {
    "semantic_alignment": "; Misalignment Locations: <|misalignment|>",
    "plausibility": "; Artifact Locations: <|artifact|>",
}
"""Score -> the location that follows its number."""
MOST_REGIONS: Final = 6
MOST_OBJECTS: Final = 9
VERDICTS: Final = (" ok;", " wrong;", " wrong shape;", " wrong colour;", " missing;")
MISALIGNED: Final = "misaligned"

PHRASES: Final = (
    LOOK,
    CHECKS,
    REGIONS,
    "none",
    " none",
    " nothing else",
    " -",
    *VERDICTS,
    *(f"#{n}" for n in range(1, MOST_OBJECTS + 1)),
    *(f"{start}{n}.[" for n in range(1, MOST_REGIONS + 1) for start in ("", ";")),
    *(f"] {what}" for what in (MISALIGNED, *ARTIFACT_KINDS)),
    " left of",
    " right of",
    ANSWER,
    *NAMES.values(),
    *(words.partition("<|")[0] for words in LOCATIONS.values()),
    END,
)
"""The fixed parts, each a token of the bundled tokenizer."""

Region = tuple[Box, str]
"""A faulty box in pixels of 128, and what is wrong there."""


def look(things: Sequence[Thing]) -> str:
    """Lists the objects from top to bottom, the first `MOST_OBJECTS` of them."""
    ordered = sorted(things, key=lambda t: (_frame(t.centre[1]), t.centre[0]))[:MOST_OBJECTS]
    parts = [f"#{n} {t.colour} {_shape(t)} {_place(t)}" for n, t in enumerate(ordered, 1)]
    return LOOK + ("".join(parts) or " none")


def checks(spec: Spec, reading: Reading) -> str:
    """Goes through the constraints: what is asked, what is seen, whether that is right."""
    holds = reading.constraints
    parts = _counted(spec, reading) if spec.category == "counting" else _placed(spec, reading)
    parts.append(f" nothing else{_verdict(holds[Constraint('nothing_else')])}")
    total = sum(WEIGHTS[c.kind] for c in constraints(spec))
    held = sum(WEIGHTS[c.kind] for c, ok in holds.items() if ok)
    return f"{CHECKS}{''.join(parts)} {held:.0f}/{total:.0f}"


def regions(found: Sequence[Region]) -> str:
    """Numbers the faulty boxes, `x1,y1,x2,y2` in the 512-px frame."""
    parts = []
    for number, (box, what) in enumerate(found[:MOST_REGIONS], 1):
        corners = ",".join(map(str, quantised(box)))
        parts.append(f"{number}.[{corners}] {what}")
    return REGIONS + (";".join(parts) or "none")


def answer(scores: Mapping[str, float]) -> str:
    """Writes what follows <answer>."""
    return "".join(text for text, _ in answer_parts(scores))


def answer_parts(scores: Mapping[str, float]) -> list[tuple[str, bool]]:
    """Cuts the answer where it is known or not: a score that is NaN is written as 0.50."""
    parts: list[tuple[str, bool]] = []
    for name, words in NAMES.items():
        value = scores[name]
        known = not math.isnan(value)
        parts += [(words, True), (f"{value if known else 0.5:.2f}", known)]
        if name in LOCATIONS:
            parts.append((LOCATIONS[name], True))
    return [*parts, (END, True)]


def faults(reading: Reading, artifact: Box | None = None, kind: str = "") -> list[Region]:
    """Lists the faulty regions: the misaligned things from top to bottom, the artifact."""
    ordered = sorted(reading.boxes, key=lambda b: (b[1] + b[3], b[0]))
    found: list[Region] = [(box, MISALIGNED) for box in ordered]
    return found if artifact is None else [*found, (artifact, kind)]


def reasons(spec: Spec, reading: Reading, found: Sequence[Region]) -> str:
    """Returns the whole reasoning, from <think> to before </think>."""
    return look(reading.things) + checks(spec, reading) + regions(found)


def quantised(box: Box) -> tuple[int, int, int, int]:
    """Maps a box in pixels of 128 to multiples of 8 of the 512-px frame, at least 8 wide."""
    x1, y1 = (min(_frame(v), FRAME - STEP) for v in box[:2])
    x2, y2 = (max(_frame(v), low + STEP) for v, low in ((box[2], x1), (box[3], y1)))
    return x1, y1, x2, y2


def _frame(value: float) -> int:
    rounded = round(value * FRAME / SIZE / STEP) * STEP
    return min(max(rounded, 0), FRAME)


def _shape(thing: Thing) -> str:
    return thing.shape or "none"


def _place(thing: Thing) -> str:
    x1, y1, x2, y2 = thing.box
    side = _frame(max(x2 - x1, y2 - y1))
    return f"{_frame(thing.centre[0])} {_frame(thing.centre[1])} {side}"


def _asked(noun: Noun) -> str:
    return f" {noun.colour} {noun.shape}" if noun.colour else f" {noun.shape}"


def _verdict(holds: bool, wrong: str = "wrong") -> str:
    return " ok;" if holds else f" {wrong};"


def _counted(spec: Spec, reading: Reading) -> list[str]:
    noun, holds = spec.nouns[0], reading.constraints
    seen = sum(thing.shape == noun.shape for thing in reading.things)
    parts = [f" {COUNTS[spec.count - 1]}{_asked(noun)} - {seen}"]
    parts.append(_verdict(holds[Constraint("count", 0)]))
    if noun.colour:
        parts.append(f" {noun.colour}{_verdict(holds[Constraint('colour', 0)])}")
    return parts


def _placed(spec: Spec, reading: Reading) -> list[str]:
    taken = match_nouns(spec, reading.things)
    parts = []
    for index, (noun, thing) in enumerate(zip(spec.nouns, taken, strict=True)):
        parts.append(f"{_asked(noun)} -{_seen(index, thing, reading.constraints)}")
    if spec.relation is not None:
        axis = 0 if spec.relation in ("left of", "right of") else 1
        at = [" none" if t is None else f" {_frame(t.centre[axis])}" for t in taken]
        right = reading.constraints[Constraint("relation")]
        parts.append(f" {spec.relation}{at[0]}{at[1]}{_verdict(right)}")
    return parts


def _seen(index: int, thing: Thing | None, holds: Mapping[Constraint, bool]) -> str:
    if thing is None:
        return " missing;"
    shape = holds[Constraint("object", index)]
    colour = holds.get(Constraint("colour", index), True)
    verdict = _verdict(shape or colour, "wrong")
    if shape != colour:
        verdict = " wrong colour;" if shape else " wrong shape;"
    x, y = (_frame(v) for v in thing.centre)
    return f" {thing.colour} {_shape(thing)} {x} {y}{verdict}"
