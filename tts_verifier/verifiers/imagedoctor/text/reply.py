"""A reply's text -> scores and boxes.

The grammar is the official one: fields `<name> score: <number>` inside <answer>, boxes
`[x1,y1,x2,y2]` anywhere (regular expressions of modify/flow_grpo/flow_grpo/doctor_hp.py and
of the grounding rewards). What differs is that nothing is guessed: a field that is missing,
cut off, not a plain number, given twice with two values, or outside [0, 1] is NaN, where the
official scorer writes 0 or clamps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tts_verifier.types import Box

SCORES: Final = ("semantic_alignment", "aesthetics", "plausibility", "overall")

_FIELDS: Final[Mapping[str, str]] = {
    "semanticalignment": "semantic_alignment",
    "aesthetic": "aesthetics",
    "plausibility": "plausibility",
    "overallimpression": "overall",
}
_FIELD = re.compile(
    r"(?<![a-z])(semantic\s*alignment|aesthetic|plausibility|overall\s*impression)"
    r"\s*score\s*:(?=\s*([^\s;<\"']*)(\s*[/%])?)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_COORDINATE = r"\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*"
_BOX = re.compile(rf"\[{_COORDINATE},{_COORDINATE},{_COORDINATE},{_COORDINATE}\]")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a reply says. `boxes`: in the model's 512-px frame, as written, valid ones only.

    `places`: where in the text each score's number was first written, (start, end).
    """

    scores: Mapping[str, float]
    boxes: tuple[Box, ...]
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """True when all four scores are there."""
        return all(math.isfinite(value) for value in self.scores.values())


def parse(text: str, *, reasoning: bool, ended: bool = True) -> Reply:
    """Reads a reply; never raises.

    Args:
        text: the generated text.
        reasoning: True when the model wrote the whole reply, so that scores count only after
            an opening <answer>; False when <answer> was given to it.
        ended: False when the reply was cut off by the limit on its length.
    """
    scores, places = _scores(text, *_answer(text, reasoning=reasoning, ended=ended))
    return Reply(scores, _boxes(text), places)


def _answer(text: str, *, reasoning: bool, ended: bool) -> tuple[int, int]:
    """Returns where the answer starts and ends, less what a cut may have damaged."""
    _, thought, after = text.rpartition("</think>")
    _, opened, inside = after.partition("<answer>")
    if reasoning and (not opened or ("<think>" in text and not thought)):
        return 0, 0
    inside = inside if opened else after
    start = len(text) - len(inside)
    inside, closed, _ = inside.partition("</answer>")
    if closed or ended:
        return start, start + len(inside)
    whole_words = re.match(r"(.*\s)?", inside, re.DOTALL)
    return start, start + (whole_words.end() if whole_words else 0)


def _scores(text: str, start: int, end: int) -> tuple[dict[str, float], dict[str, tuple[int, int]]]:
    """Returns the scores between two places, and where each was first written."""
    scores = dict.fromkeys(SCORES, math.nan)
    places: dict[str, tuple[int, int]] = {}
    seen: dict[str, float] = {}
    for found in _FIELD.finditer(text[:end], start):
        name, written, unit = found.groups()
        key = _FIELDS["".join(name.lower().split())]
        value = math.nan if unit else _number(written)
        if key in seen and seen[key] != value:
            value = math.nan
        seen[key] = scores[key] = value
        places.setdefault(key, (found.start(2), found.start(2) + len(written.rstrip(".,"))))
    return scores, places


def _number(written: str) -> float:
    """Returns a number in [0, 1], else NaN; a final point or comma is punctuation."""
    written = written.rstrip(".,")
    if not _NUMBER.fullmatch(written):
        return math.nan
    value = float(written)
    return abs(value) if 0.0 <= value <= 1.0 else math.nan


def _boxes(text: str) -> tuple[Box, ...]:
    """Returns each box once, in order; one without area is left out."""
    found: dict[Box, None] = {}
    for x1, y1, x2, y2 in _BOX.findall(text):
        box = (float(x1), float(y1), float(x2), float(y2))
        if box[0] < box[2] and box[1] < box[3]:
            found[box] = None
    return tuple(found)
