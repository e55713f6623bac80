"""Names of scores: each score as the reply writes it, and its finer expectation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EXPECTED: Final = "_expected"
"""Suffix of a score that is the expectation over its digits' probabilities."""


def written_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Returns the scores that people read, without the `_expected` ones."""
    return {name: value for name, value in scores.items() if not name.endswith(EXPECTED)}
