"""Parses the text of a reply into scores and boxes.

The grammar is the official one: fields `<name> score: <number>` inside <answer>, and boxes
`[x1,y1,x2,y2]` anywhere. The official regular expressions are in modify/flow_grpo/flow_grpo/
doctor_hp.py and in the grounding rewards. Unlike them this parser guesses nothing. A field is
NaN if it is missing, cut off, not a plain number, outside [0, 1], or given twice with two
values; the official scorer writes 0 or clamps instead. Letters and digits are those of ASCII.

The time is linear in the length of the reply, whatever it says: quantifiers that could share
their text with another one are possessive (`*+`), and a number has `MAX_NUMBER_CHARACTERS` at most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tts_verifier.types import Box
from tts_verifier.types.score_names import SCORE_NAMES

_FIELD_TO_SCORE: Final[Mapping[str, str]] = {
    "semanticalignment": "semantic_alignment",
    "aesthetic": "aesthetics",
    "plausibility": "plausibility",
    "overallimpression": "overall",
}
MAX_REPLY_CHARACTERS: Final = 16_384
"""The most characters of a reply that are read, twice what 2048 tokens usually take."""
MAX_NUMBER_CHARACTERS: Final = 100
"""A longer score is no plain number."""

# The look-ahead leaves the number unconsumed: an empty field must not swallow the next name.
# Its last group finds the unit of "0.8/1" and "80 %", which are not plain numbers. One character
# more than a number may have, so that a longer one is seen to be longer.
# Without (?a:…) the long s and the dotless i count as an s and an i in another case.
_FIELD_PATTERN = re.compile(
    r"(?<![a-z])((?a:semantic)\s*+(?a:alignment)|(?a:aesthetic)|(?a:plausibility)"
    r"|(?a:overall)\s*+(?a:impression))\s*+(?a:score)\s*+:"
    rf"(?=\s*+([^\s;<\"']{{0,{MAX_NUMBER_CHARACTERS + 1}}})(\s*+[/%])?)",
    re.IGNORECASE,
)
# [0-9] and not \d, which also matches digits of other scripts.
_UNSIGNED = r"(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)"
_NUMBER_PATTERN = re.compile(rf"[-+]?+{_UNSIGNED}(?:[eE][-+]?[0-9]+)?")
_COORDINATE = rf"\s*+([-+]?+{_UNSIGNED})\s*+"
_BOX_PATTERN = re.compile(rf"\[{_COORDINATE},{_COORDINATE},{_COORDINATE},{_COORDINATE}\]")


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """The content of a reply."""

    scores: Mapping[str, float]
    """A value in [0, 1] or NaN for each of `SCORE_NAMES`."""
    boxes: tuple[Box, ...]
    """Boxes (x1, y1, x2, y2) in the model's 512-pixel frame, as written; only those with area."""
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """For each score that occurs, the (start, end) of its first number in the text."""
    problem: str = ""
    """Why a part of the reply was not read; empty if all of it was."""

    @property
    def is_complete(self) -> bool:
        """True if the reply gives all four scores."""
        return all(math.isfinite(value) for value in self.scores.values())


def parse_reply(text: str, *, reasoning: bool, ended: bool = True) -> ParsedReply:
    """Parses a reply. Never raises, whatever the text is.

    Args:
        text: the generated text. What comes after `MAX_REPLY_CHARACTERS` is not read.
        reasoning: True if the model wrote the whole reply, so that scores count only after an
            opening <answer>. False if <answer> was part of its input.
        ended: False if the limit on its length cut the reply off.
    """
    problem = ""
    if len(text) > MAX_REPLY_CHARACTERS:
        problem = (
            f"A reply must have at most {MAX_REPLY_CHARACTERS} characters to be read to its end; "
            f"one has {len(text)}. Lower max_new_tokens."
        )
        text, ended = text[:MAX_REPLY_CHARACTERS], False
    start, end = _answer_span(text, reasoning=reasoning, ended=ended)
    scores, spans = _parse_scores(text, start, end)
    return ParsedReply(scores, _parse_boxes(text), spans, problem)


def _answer_span(text: str, *, reasoning: bool, ended: bool) -> tuple[int, int]:
    """Returns (start, end) of the answer, without a last word that may be incomplete."""
    _, closed_thinking, after = text.rpartition("</think>")
    _, opened, answer = after.partition("<answer>")
    if reasoning and (not opened or ("<think>" in text and not closed_thinking)):
        return 0, 0
    answer = answer if opened else after
    start = len(text) - len(answer)
    answer, closed, _ = answer.partition("</answer>")
    if closed or ended:
        return start, start + len(answer)
    # A cut may have shortened the last number: "0.8" may be the start of "0.85".
    whole_words = re.match(r"(.*\s)?", answer, re.DOTALL)
    return start, start + (whole_words.end() if whole_words else 0)


def _parse_scores(
    text: str, start: int, end: int
) -> tuple[dict[str, float], dict[str, tuple[int, int]]]:
    """Returns the scores in text[start:end], and the span of each one's first number."""
    scores = dict.fromkeys(SCORE_NAMES, math.nan)
    spans: dict[str, tuple[int, int]] = {}
    stated: dict[str, float] = {}
    # `start` is an argument and no slice, so that spans count from the start of the text.
    for match in _FIELD_PATTERN.finditer(text[:end], start):
        field_name, written, unit = match.groups()
        name = _FIELD_TO_SCORE["".join(field_name.lower().split())]
        value = math.nan if unit else _parse_score(written)
        # NaN differs from every value, so a field that was NaN once stays NaN.
        if name in stated and stated[name] != value:
            value = math.nan
        stated[name] = scores[name] = value
        spans.setdefault(name, (match.start(2), match.start(2) + len(written.rstrip(".,"))))
    return scores, spans


def _parse_score(written: str) -> float:
    """Returns a number in [0, 1] or NaN; a final point or comma is punctuation."""
    written = written.rstrip(".,")
    if len(written) > MAX_NUMBER_CHARACTERS or not _NUMBER_PATTERN.fullmatch(written):
        return math.nan
    value = float(written)
    return abs(value) if 0.0 <= value <= 1.0 else math.nan  # abs: "-0.0" is 0


def _parse_boxes(text: str) -> tuple[Box, ...]:
    """Returns each box once, in order of appearance, without boxes that have no area."""
    boxes: dict[Box, None] = {}
    # Each wording once: turning text into numbers takes most of the time of a long reply.
    for corners in dict.fromkeys(_BOX_PATTERN.findall(text)):
        x1, y1, x2, y2 = map(float, corners)
        # Three hundred digits are infinite.
        if -math.inf < x1 < x2 < math.inf and -math.inf < y1 < y2 < math.inf:
            boxes[x1, y1, x2, y2] = None
    return tuple(boxes)
