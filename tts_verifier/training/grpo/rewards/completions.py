"""Reads scores and boxes of completions, by the regular expressions of the official rewards.

They are not the grammar of `verifiers.imagedoctor.text.reply`, which guesses nothing: here a score
needs the exact label and for three of the four a ';', a block without it counts as a 0, a box
counts each time it is written and may be reversed, and digits may be of any script.

The time is linear in the length of a completion, whatever it says: quantifiers are possessive
(`++`), which finds the same text here, as what follows them cannot be a part of it.

Source: modify/VLM-R1/src/open_r1/grpo_jsonl_np.py of the official repository.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tts_verifier.errors import InputError

Reals = NDArray[np.float64]

WRITTEN_SIDE: Final = 512
"""Pixels a side of the frame in which completions write boxes."""
SIDE: Final = 288
"""Pixels a side at which maps are compared, and of the frame into which boxes are scaled."""
MAX_BOXES: Final = 1024
"""Boxes of a completion that are read. The official limit of 4,096 tokens holds half as many."""
LARGEST_SCORE: Final = 1e6
"""A larger score counts as this one, so that sums of rewards stay finite."""
_LARGEST_CORNER: Final = float(np.finfo(np.float32).max)

# In the order of SCORE_NAMES.
_SCORES: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"Semantic Alignment score: ([0-9.]++);",
        r"Aesthetic score: ([0-9.]++);",
        r"Plausibility score: ([0-9.]++);",
        r"Overall Impression score: ([0-9.]++)",
    )
)
_NUMBER: Final = r"\s*+([+-]?+\d++(?:\.\d++)?+)\s*+"
_BOX: Final = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What the answers of N completions say."""

    answered: NDArray[np.bool_]
    """(N,), True where there is an <answer> with its end."""
    found: NDArray[np.bool_]
    """(N, 4), True where the answer has this score, in the order of SCORE_NAMES."""
    scores: Reals
    """(N, 4), at least 0; 0 where it was not found."""


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """The boxes of N completions, M in all."""

    corners: Reals
    """(M, 4), x1, y1, x2, y2 as written, in the frame of SIDE; those of a completion follow each
    other, in the order of the completions."""
    counts: NDArray[np.int64]
    """(N,), how many each completion has."""


def texts_of(completions: Sequence[Any]) -> list[str]:
    """Returns the text of each completion.

    Args:
        completions: texts, or lists of messages as TRL has them, of which the first counts, as in
            the official rewards. A message's content is a text or a list of parts.

    Raises:
        InputError: a completion is neither.
    """
    return [_text_of(completion, at) for at, completion in enumerate(completions)]


def read_answers(texts: Sequence[str]) -> Answers:
    """Reads the four scores inside the first <answer>…</answer> of each text."""
    answered = np.zeros(len(texts), bool)
    found, scores = np.zeros((len(texts), 4), bool), np.zeros((len(texts), 4))
    for row, text in enumerate(texts):
        start = text.find("<answer>")
        end = text.find("</answer>", start) if start >= 0 else -1
        if end < 0:
            continue
        answered[row] = True
        for column, pattern in enumerate(_SCORES):
            match = pattern.search(text, start, end)
            value = math.nan if match is None else _as_number(match.group(1))
            if not math.isnan(value):
                found[row, column], scores[row, column] = True, min(value, LARGEST_SCORE)
    return Answers(answered, found, scores)


def read_boxes(texts: Sequence[str]) -> Boxes:
    """Reads every [x1, y1, x2, y2] of each text, in order, also outside the answer.

    They are scaled from WRITTEN_SIDE to SIDE and rounded to float32, which decides on which pixel a
    box ends.
    """
    found: list[tuple[str, ...]] = []
    counts = np.zeros(len(texts), np.int64)
    for row, text in enumerate(texts):
        before = len(found)
        found += [match.groups() for match in islice(_BOX.finditer(text), MAX_BOXES)]
        counts[row] = len(found) - before
    numbers = np.array([list(map(float, box)) for box in found], np.float64).reshape(-1, 4)
    # The official rewards stop with an error where a coordinate does not fit in a float32.
    corners = np.clip(numbers * (SIDE / WRITTEN_SIDE), -_LARGEST_CORNER, _LARGEST_CORNER)
    return Boxes(corners.astype(np.float32).astype(np.float64), counts)


def _text_of(completion: Any, at: int) -> str:
    if isinstance(completion, str):
        return completion
    content = completion
    if isinstance(completion, (list, tuple)) and completion:
        first = completion[0]
        content = first.get("content") if isinstance(first, dict) else None
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)) and content is not completion:
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    raise InputError(
        "A completion must be a text, or a list of messages whose first one has a content, got "
        f"{str(completion)[:60]!r} for completion {at}. Decode token ids first."
    )


def _as_number(written: str) -> float:
    try:
        return float(written)
    except ValueError:  # such as "0.8.", whose point ends a sentence
        return math.nan
