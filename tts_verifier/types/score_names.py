"""Names of scores: ImageDoctor's four, their expectations and their standard deviations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SCORE_NAMES: Final = ("semantic_alignment", "aesthetics", "plausibility", "overall")
"""The scores of an ImageDoctor, in the order of its reply."""

EXPECTED: Final = "_expected"
"""Suffix of a score that is the expectation over the probabilities of its digits."""

SIGMA: Final = "_sigma"
"""Suffix of the standard deviation of a score, in units of the score: how sure the verifier is."""

COST: Final = "cost_"
"""Prefix of columns that say what a verdict took at an endpoint: tokens and money."""


def written_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Returns the scores as the reply writes them, without the `_expected` ones."""
    return {name: value for name, value in scores.items() if not name.endswith(EXPECTED)}
