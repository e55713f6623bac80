"""Scores finer than two digits: expected values over the probabilities of the digits.

A greedy reply says 0.86 even if 0.87 was nearly as likely, so candidates often tie. Let p(1) be
the probability of "1" before the decimal point, against "0". Let p_j(k) be the probability of
digit k at decimal j, given the text before it. The expected score is

    p(1) + (1 - p(1)) * sum over j of 10^-j * sum over k of k * p_j(k)     where 0.… is written,
    p(1) + (1 - p(1)) * 0.99                                               where 1.… is written,

with each distribution normalised over its digits alone. The expected score varies smoothly
with the image, and costs nothing: the model has computed the probabilities anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tts_verifier.types.score_names import EXPECTED
from tts_verifier.verifiers.imagedoctor.text.reply import ParsedReply
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer

DIGITS: Final = "0123456789"
_DIGIT_VALUES: Final = np.arange(10, dtype=np.float64)
_JUST_BELOW_ONE: Final = 0.99
"""The value of 0.…, where the reply says 1.… and the other decimals are unknown."""
_COLUMN_OF_ONE: Final = 11
"""Column of "1" before the point: ten digits and "0" come first."""


@dataclass(frozen=True, slots=True)
class ScoreTokens:
    """The tokens with which a tokenizer writes scores, digit by digit."""

    digits: tuple[int, ...]
    """Ids of "0" to "9"."""
    units: tuple[int, int]
    """Ids of "0" and "1" before the point; of "0." and "1." if the point belongs to them."""
    point: tuple[int, ...]
    """The ids between units and decimals: the point, or nothing."""

    @classmethod
    def from_tokenizer(cls, tokenizer: PromptTokenizer) -> ScoreTokens | None:
        """Finds the ids; returns None if the tokenizer does not write scores digit by digit."""
        digits = [tokenizer.encode(str(digit)) for digit in range(10)]
        # Two different decimals show whether each is a token of its own, and a second unit
        # shows whether the same tokens follow it.
        zero, one = tokenizer.encode("0.25"), tokenizer.encode("1.25")
        decimals = [*digits[2], *digits[5]]
        regular = all(len(ids) == 1 for ids in digits) and zero[1:] == one[1:]
        if not regular or zero[-2:] != decimals or len(zero) not in (3, 4):
            return None
        return cls(tuple(ids[0] for ids in digits), (zero[0], one[0]), tuple(zero[1:-2]))


def expected_scores(
    reply: ParsedReply, text: str, pieces: Sequence[str], probs: NDArray[np.float32]
) -> dict[str, float]:
    """Computes the expected value of every score, under its name with the suffix `EXPECTED`.

    Args:
        reply: the parsed text.
        text: the text of all tokens together.
        pieces: the text of each token alone.
        probs: (tokens, 12). Where a token was chosen, the probabilities of the ten digits and
            of the two units; each group sums to 1. Rows of other tokens are not read.

    Returns:
        The expected scores. A score that is not written digit by digit keeps its written value.
    """
    first = min((start for start, _ in reply.spans.values()), default=len(text))
    token_at = _tokens_from(first, text, pieces)
    # A product of float32 and integers would convert both each time.
    digits = probs[:, :10].astype(np.float64)
    scores = {}
    for name, value in reply.scores.items():
        expected = None
        if name in reply.spans and not math.isnan(value):
            start, end = reply.spans[name]
            tokens = [token_at.get(offset) for offset in range(start, end)]
            expected = _expected_value(text[start:end], tokens, pieces, digits, probs)
        scores[name + EXPECTED] = value if expected is None else expected
    return scores


def _tokens_from(first: int, text: str, pieces: Sequence[str]) -> dict[int, int]:
    """Returns the token that begins at each offset of the text, from offset `first` on."""
    token_at: dict[int, int] = {}
    # From the end of the text. Before the answer, a letter may be made of several tokens, whose
    # pieces alone are longer than the letter.
    start = len(text)
    for token in range(len(pieces) - 1, -1, -1):
        start -= len(pieces[token])
        if start < first:
            break
        token_at[start] = token
    return token_at


def _expected_value(
    written: str,
    tokens: Sequence[int | None],
    pieces: Sequence[str],
    digits: NDArray[np.float64],
    probs: NDArray[np.float32],
) -> float | None:
    """Returns the expected value of one number, None if it is not written digit by digit.

    Args:
        written: the number.
        tokens: for each of its characters, the token that begins there, None for no token.
        pieces: see `expected_scores`.
        digits: (tokens, 10), the probabilities of the ten digits.
        probs: see `expected_scores`.
    """
    unit, point, decimals = written.partition(".")
    first = tokens[0]
    if unit not in ("0", "1") or not decimals or first is None:
        return None
    if pieces[first] not in (unit, unit + point):
        return None
    fraction = 0.0
    # The first two characters are the unit and the point.
    for j, (digit, token) in enumerate(zip(decimals, tokens[2:], strict=True), 1):
        # An exponent is made of tokens too, whose probabilities are those of no digit.
        if token is None or digit not in DIGITS or pieces[token] != digit:
            return None
        fraction += float(digits[token].dot(_DIGIT_VALUES)) * 10.0**-j
    prob_one = float(probs[first, _COLUMN_OF_ONE])
    # Probabilities in float32 may add up to a little more than 1, and so may the fraction.
    below_one = _JUST_BELOW_ONE if unit == "1" else min(fraction, 1.0)
    return prob_one + (1 - prob_one) * below_one
