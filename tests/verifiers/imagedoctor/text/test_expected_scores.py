from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from tts_verifier.verifiers.imagedoctor.text.expected_scores import expected_scores
from tts_verifier.verifiers.imagedoctor.text.reply import parse_reply


def expected_alignment(pieces: Sequence[str], probs: Mapping[int, Mapping[int, float]]) -> float:
    """The expected semantic alignment; `probs`: piece -> column (digit or unit) -> probability."""
    text, table = "".join(pieces), np.zeros((len(pieces), 12), np.float32)
    for place, row in probs.items():
        for column, value in row.items():
            table[place, column] = value
    scores = expected_scores(parse_reply(text, reasoning=False), text, pieces, table)
    return scores["semantic_alignment_expected"]


def test_every_digit_counts_with_its_probabilities() -> None:
    pieces = ["semantic alignment score: ", "0", ".", "4", "2", "</answer>"]
    probs = {1: {10: 1.0}, 3: {4: 0.75, 5: 0.25}, 4: {2: 0.5, 3: 0.5}}
    assert expected_alignment(pieces, probs) == pytest.approx(0.4 + 0.025 + 0.025)
    unsure = probs | {1: {10: 0.9, 11: 0.1}}
    assert expected_alignment(pieces, unsure) == pytest.approx(0.1 + 0.9 * 0.45)


def test_a_one_counts_against_just_less() -> None:
    pieces = ["semantic alignment score: ", "1.", "0", "0"]
    assert expected_alignment(pieces, {1: {10: 0.2, 11: 0.8}}) == pytest.approx(0.998)


@pytest.mark.parametrize(
    ("pieces", "written"),
    [
        (["semantic alignment score: ", "0.42"], 0.42),
        (["semantic alignment score: ", "0", ".", "42"], 0.42),
        (["semantic alignment score:", " .5"], 0.5),
        (["semantic alignment score: ", "1"], 1.0),
        (["semantic alignment score: 0", ".", "4"], 0.4),
        (["semantic alignment score: ", "0", ".", "5", "e", "-", "1"], 0.05),
        (["nothing"], float("nan")),
    ],
)
def test_a_score_that_is_not_written_digit_by_digit_keeps_its_value(
    pieces: list[str], written: float
) -> None:
    assert expected_alignment(pieces, {}) == pytest.approx(written, nan_ok=True)


def test_letters_of_several_tokens_before_the_answer_do_not_shift_it() -> None:
    pieces = ["\ufffd", "\ufffd", "</think><answer>", "Semantic alignment score: ", "0.", "8", "1"]
    text = "é</think><answer>Semantic alignment score: 0.81"
    probs = np.zeros((7, 12), np.float32)
    probs[4, 10] = probs[5, 8] = probs[6, 1] = 1
    scores = expected_scores(parse_reply(text, reasoning=True), text, pieces, probs)
    assert scores["semantic_alignment_expected"] == pytest.approx(0.81)
