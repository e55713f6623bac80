"""Scores that a reply writes as decimal numbers, and their expectations over the digits.

The rule is that of ImageDoctor's expected scores (`imagedoctor.text.expected_scores`), for any unit
in place of 0 and 1: decimals count with the expectation of each digit given the text before it, and
a unit that was not written counts with its value that is nearest to the written number. With the
probability p(u) of unit u before the point and p_j(k) of digit k at decimal j, where w.… is
written, the expected score is

    p(w) * (w + sum over j of 10^-j * sum over k of k * p_j(k))
    + sum over u > w of p(u) * u  +  sum over u < w of p(u) * (u + 0.99),

with each distribution normalised over its digits, and units over those of the scale.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Final

import numpy as np

from tts_verifier.verifiers.vision_language.inference.replies import Reply

_JUST_BELOW: Final = 0.99
_DECIMALS: Final = 6
"""Further decimals change nothing that a reader could see."""


def expected_number(reply: Reply, start: int, end: int, low: int, high: int) -> float | None:
    """Returns the expected value of a number in a reply.

    Args:
        reply: with the probabilities of the digits.
        start: where the number begins in `reply.text`.
        end: where it ends.
        low: the lowest score of the scale, 0 to 9.
        high: the highest.

    Returns:
        A value in [low, high]; None if the number is not written digit by digit, or its unit is
        not on the scale.
    """
    unit, _, decimals = reply.text[start:end].partition(".")
    if len(unit) != 1 or not low <= int(unit) <= high:
        return None
    # Offsets count from the end: before the number a letter may be made of several tokens.
    ends = [len(reply.text) - n for n in accumulate(map(len, reversed(reply.pieces)), initial=0)]
    token_at = {offset: len(reply.pieces) - i for i, offset in enumerate(ends) if i}
    places = [start, *range(start + 2, start + 2 + min(len(decimals), _DECIMALS))]
    tokens = [token_at.get(offset) for offset in places]
    pairs = zip(tokens, places, strict=True)
    found = [t for t, p in pairs if t is not None and reply.pieces[t] == reply.text[p]]
    if len(found) < len(places):
        return None
    probs = [reply.digits[token] for token in found]
    fraction = sum(10.0**-j * float(row @ np.arange(10)) for j, row in enumerate(probs) if j)
    units = probs[0][low : high + 1].astype(np.float64)
    units /= units.sum()
    written = int(unit)
    values = [
        u + fraction if u == written else u if u > written else u + _JUST_BELOW
        for u in range(low, high + 1)
    ]
    return float(np.clip(units @ np.array(values), low, high))
