"""The answer as a training target, in the official grammar.

Its labels and their order are those of ImageDoctor's inference.py and of the regular expressions of
its reward, which require a ';' after three of the scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

ANSWER_START: Final = "</think>\n<answer>"
ANSWER_END: Final = "</answer>"
SCORE_LABELS: Final = {
    "semantic_alignment": "Semantic Alignment score: ",
    "aesthetics": "; Aesthetic score: ",
    "plausibility": "; Plausibility score: ",
    "overall": "; Overall Impression score: ",
}
"""Score -> the text before its number."""
LOCATION_LABELS: Final = {
    "semantic_alignment": "; Misalignment Locations: <|misalignment|>",
    "plausibility": "; Artifact Locations: <|artifact|>",
}
"""Score -> the text with the heatmap token that follows its number."""


def answer_text(scores: Mapping[str, float]) -> str:
    """Writes the answer, without its opening tag."""
    return "".join(text for text, _ in answer_parts(scores))


def answer_parts(scores: Mapping[str, float]) -> list[tuple[str, bool]]:
    """Returns the parts of the answer, each with whether it is known.

    A score that is NaN is written as 0.50, and this part is not known.
    """
    parts: list[tuple[str, bool]] = []
    for name, label in SCORE_LABELS.items():
        value = scores[name]
        known = not math.isnan(value)
        parts += [(label, True), (f"{value if known else 0.5:.2f}", known)]
        if name in LOCATION_LABELS:
            parts.append((LOCATION_LABELS[name], True))
    return [*parts, (ANSWER_END, True)]
