"""Rank correlation agrees with values worked out by hand, and is 1 where it is undefined."""

import pytest

from tts_verifier.choice.rank_correlation import spearman


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(1, 10), (2, 20), (3, 25), (4, 99)], 1.0),
        ([(1, 4), (2, 3), (3, 2), (4, 1)], -1.0),
        ([(1, 1), (2, 3), (3, 2), (4, 4)], 0.8),
        ([(1, 1), (1, 2), (1, 3), (1, 4)], 1.0),
        ([(1, 1), (2, 2), (2, 1), (4, 4)], 3.75 / 4.5),
        ([(1, 2), (2, 1)], 1.0),
    ],
)
def test_rank_correlation(pairs: list, expected: float) -> None:
    assert spearman(pairs) == pytest.approx(expected)
