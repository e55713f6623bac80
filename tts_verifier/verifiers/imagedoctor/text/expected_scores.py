"""Scores finer than two digits: the expectation over the digits' probabilities.

A greedy reply writes 0.86 whether 0.87 was nearly as likely or not, so that candidates often tie.
With p(1) the probability of a 1 before the point against a 0, and p_j(k) that of digit k at
decimal j, given what was written before it, the expected score is

    p(1) + (1 - p(1)) * sum over j of 10^-j * sum over k of k * p_j(k)     where 0.… is written,
    p(1) + (1 - p(1)) * 0.99                                               where 1.… is written,

each normalised over the digits alone. It depends smoothly on the image, at no cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tts_verifier.types.score_names import EXPECTED
from tts_verifier.verifiers.imagedoctor.text.reply import Reply
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer

_BELOW_ONE: Final = 0.99


@dataclass(frozen=True, slots=True)
class Numerals:
    """How a tokenizer writes a score.

    `digits`: ids of "0" to "9". `units`: of what is before the decimals as far as it is
    chosen: "0" and "1", or "0." and "1." where the point belongs to them. `point`: what follows.
    """

    digits: tuple[int, ...]
    units: tuple[int, int]
    point: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PromptTokenizer) -> Numerals | None:
        """Finds the ids; None where a score is not written digit by digit."""
        digits = [tokenizer.encode(str(digit)) for digit in range(10)]
        zero, one = tokenizer.encode("0.25"), tokenizer.encode("1.25")
        tail = [*digits[2], *digits[5]]
        whole = all(len(ids) == 1 for ids in digits) and zero[1:] == one[1:]
        if not whole or zero[-2:] != tail or len(zero) not in (3, 4):
            return None
        return cls(tuple(ids[0] for ids in digits), (zero[0], one[0]), tuple(zero[1:-2]))


def expected(
    reply: Reply, text: str, pieces: Sequence[str], odds: NDArray[np.float32]
) -> Mapping[str, float]:
    """Returns the expected scores, named with `EXPECTED`.

    Args:
        reply: what the text says.
        text: of all tokens together.
        pieces: of each token alone.
        odds: (tokens, 12), where each was chosen the probabilities of the digits and of the
            two units, each group normalised alone; rows of what was not chosen do not matter.

    Returns:
        For every score; where it is not written digit by digit, as it is written.
    """
    # Counted from the end: before the answer letters may be made of several tokens.
    ends = [len(text) - behind for behind in accumulate(map(len, reversed(pieces)))]
    token_at = {start: len(pieces) - 1 - i for i, start in enumerate(ends)}
    found = {}
    for name, value in reply.scores.items():
        fine = None
        if name in reply.places and not math.isnan(value):
            start, end = reply.places[name]
            places = [token_at.get(place) for place in range(start, end)]
            fine = _expected(text[start:end], places, pieces, odds)
        found[name + EXPECTED] = value if fine is None else fine
    return found


def _expected(
    written: str,
    places: Sequence[int | None],
    pieces: Sequence[str],
    odds: NDArray[np.float32],
) -> float | None:
    """Returns a number's expectation, None if it is not written digit by digit.

    `places`: of each character, the token that begins there.
    """
    unit, point, decimals = written.partition(".")
    first = places[0]
    if unit not in ("0", "1") or not decimals or first is None:
        return None
    if pieces[first] not in (unit, unit + point):
        return None
    one = float(odds[first, 11])
    below = 0.0
    for j, (digit, token) in enumerate(zip(decimals, places[2:], strict=True), 1):
        if token is None or pieces[token] != digit:
            return None
        below += float(odds[token, :10] @ np.arange(10)) * 10.0**-j
    return one + (1 - one) * (_BELOW_ONE if unit == "1" else min(below, 1.0))
