"""Finds wanted texts among the words that were read, and the words that differ.

Letters are compared after NFKC, without white space, without the form of quotes and dashes and,
unless asked otherwise, without case.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Final

import numpy as np
from numpy.typing import NDArray

_Codes = NDArray[np.int64]
_FORMS: Final = str.maketrans("‘’‚′`´“”„″«»‐‑‒–—―−", "''''''\"\"\"\"\"\"-------")
_MOST_SPANS: Final = 100
"""Of a text, where there are several: with all of them a page of text would take minutes."""
_FEWEST_WORDS: Final = 1e-6
"""Of spans that are equally similar, the one of fewer words counts, then the earlier one."""


@dataclass(frozen=True, slots=True)
class Match:
    """A wanted text and the words that are taken for it."""

    wanted: str
    words: tuple[int, ...]
    """Indices of neighbouring words; empty if nothing resembles the wanted text."""
    similarity: float
    """1 - edit distance / the longer length, in [0, 1]."""
    wrong: tuple[tuple[int, int, int], ...]
    """What differs: (word, first letter, last letter), all of one word of the wanted text. A word
    that was read may hold several of these, because readers miss spaces."""


def folded(text: str, *, case_sensitive: bool = False) -> str:
    """Returns the letters of a text as they are compared."""
    text = unicodedata.normalize("NFKC", text).translate(_FORMS)
    return "".join((text if case_sensitive else text.casefold()).split())


def best_matches(
    wanted: Sequence[str], words: Sequence[str], *, case_sensitive: bool = False
) -> list[Match]:
    """Gives every wanted text a run of neighbouring words, no word to two texts.

    The sum of the similarities is the largest possible with the most similar runs of each text
    (`_MOST_SPANS` of them). A text may run over several lines, and a
    line may hold several texts.

    Args:
        wanted: texts with at least one letter each.
        words: what was read, in reading order.
        case_sensitive: whether "Open" and "OPEN" differ.
    """
    read = ["".join(_letters(word, case_sensitive)) for word in words]

    def value(found: tuple[range, float]) -> float:
        span, similarity = found
        return similarity - _FEWEST_WORDS * (len(span) + span.start / (len(words) + 1))

    most = _MOST_SPANS if len(wanted) > 1 else 1
    spans = [
        (number, found[0], found[1], value(found))
        for number, text in enumerate(wanted)
        for found in nlargest(
            most, _spans(folded(text, case_sensitive=case_sensitive), read), key=value
        )
    ]
    taken = {spans[i][0]: spans[i][1:3] for i in _disjoint(spans, len(wanted), len(words))}
    matches = []
    for number, text in enumerate(wanted):
        span, similarity = taken.get(number, (range(0), 0.0))
        wrong = () if similarity == 1 else _wrong_parts(text, words, span, case_sensitive)
        matches.append(Match(text, tuple(span), similarity, wrong))
    return matches


def pieces_of(word: str, wanted: Sequence[str], *, case_sensitive: bool = False) -> list[str]:
    """Splits a word where wanted texts begin and end in it, because readers miss spaces.

    White space does not count in a comparison, so a split that was not needed does no harm.

    Args:
        word: that was read.
        wanted: texts; the longer ones count first.
        case_sensitive: whether "Open" and "OPEN" differ.
    """
    shown = "".join(_letters(word, case_sensitive))
    texts = {folded(text, case_sensitive=case_sensitive) for text in wanted}
    if shown in texts:
        return [word]
    for text in sorted(texts, key=lambda text: (-len(text), text)):
        start = shown.find(text)
        # Where a letter becomes two in a comparison, places are not those of the word.
        if start >= 0 and len(shown) == len(word):
            parts = (word[:start], word[start : start + len(text)], word[start + len(text) :])
            return [
                piece
                for part in parts
                if part
                for piece in pieces_of(part, wanted, case_sensitive=case_sensitive)
            ]
    return [word]


def _letters(word: str, case_sensitive: bool) -> list[str]:
    """Returns each letter of a word as it is compared; "ß" becomes two."""
    return [folded(letter, case_sensitive=case_sensitive) for letter in word]


def _spans(wanted: str, read: Sequence[str]) -> list[tuple[range, float]]:
    """Returns the runs of words that resemble a text at all, with their similarities."""
    found, letters = [], _codes(wanted)
    for start in range(len(read)):
        row, length = np.arange(len(wanted) + 1), 0
        for end in range(start, len(read)):
            for letter in read[end]:
                row = _next_row(row, letters, letter)
            length += len(read[end])
            # A longer run has more surplus letters than the text has letters.
            if length > 2 * len(wanted) and end > start:
                break
            similarity = 1 - int(row[-1]) / max(len(wanted), length, 1)
            if similarity > 0:
                found.append((range(start, end + 1), similarity))
    return found


def _next_row(row: _Codes, wanted: _Codes, letter: str) -> _Codes:
    """Returns the row of Levenshtein's table after one more letter that was read."""
    after = np.empty_like(row)
    after[0] = row[0] + 1
    np.minimum(row[:-1] + (wanted != ord(letter)), row[1:] + 1, out=after[1:])
    # A missing letter costs 1 more than its neighbour on the left.
    places = np.arange(len(row))
    cheapest: _Codes = np.minimum.accumulate(after - places) + places
    return cheapest


def _codes(text: str) -> _Codes:
    """Returns the number of each letter, (letters,)."""
    return np.array([ord(letter) for letter in text], np.int64)


def _disjoint(
    spans: Sequence[tuple[int, range, float, float]], texts: int, words: int
) -> list[int]:
    """Returns the indices of the spans of the largest total value, the last item of each.

    Each text gets at most one span, and each word is in at most one.
    """
    if not spans:
        return []
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import lil_matrix

    uses = lil_matrix((texts + words, len(spans)))
    for column, (number, span, _, _) in enumerate(spans):
        uses[number, column] = 1
        for word in span:
            uses[texts + word, column] = 1
    values = np.array([value for *_, value in spans])
    best = milp(
        -values,
        constraints=LinearConstraint(uses.tocsr(), -np.inf, 1),
        integrality=np.ones(len(spans)),
        bounds=Bounds(0, 1),
    )
    return [int(i) for i in np.flatnonzero(best.x > 0.5)]


def _wrong_parts(
    text: str, words: Sequence[str], span: range, case_sensitive: bool
) -> tuple[tuple[int, int, int], ...]:
    """Returns the parts of a span that stand for wrong words of a text, as in `Match.wrong`.

    A surplus letter belongs to the word of the text before it, or else to that behind it. A word
    of the text that is missing altogether has no place; its neighbours are wrong instead.
    """
    pieces = [folded(piece, case_sensitive=case_sensitive) for piece in text.split()]
    owners = [number for number, piece in enumerate(pieces) for _ in piece]
    places = [
        (word, place)
        for word in span
        for place, letter in enumerate(words[word])
        for _ in folded(letter, case_sensitive=case_sensitive)
    ]
    shown = "".join("".join(_letters(words[word], case_sensitive)) for word in span)
    pairs = _alignment("".join(pieces), shown)
    shown_by = _owners_of_shown(pairs, owners, places)
    wrong: set[int] = set()
    for step, (i, j) in enumerate(pairs):
        if i is None and j is not None:
            wrong.add(shown_by[j])
        elif i is not None and j is None and owners[i] not in shown_by:
            before = [q for _, q in pairs[:step] if q is not None][-1:]
            after = [q for _, q in pairs[step:] if q is not None][:1]
            wrong |= {shown_by[q] for q in (*before, *after)}
        elif i is not None and (j is None or "".join(pieces)[i] != shown[j]):
            wrong.add(owners[i])
    return _mistaken_parts([(shown_by[j], *place) for j, place in enumerate(places)], wrong)


def _owners_of_shown(
    pairs: Sequence[tuple[int | None, int | None]],
    owners: Sequence[int],
    places: Sequence[tuple[int, int]],
) -> list[int]:
    """Returns for each letter that was read the wanted word that it stands for.

    A word without a partner is its own: it gets a negative number.
    """
    known = {j: owners[i] for i, j in pairs if i is not None and j is not None}
    found = []
    for j, (word, _) in enumerate(places):
        same = [q for q in known if places[q][0] == word]
        before = [q for q in same if q <= j]
        nearest = max(before) if before else min(same, default=None)
        found.append(-1 - word if nearest is None else known[nearest])
    return found


def _mistaken_parts(
    letters: Sequence[tuple[int, int, int]], wrong: set[int]
) -> tuple[tuple[int, int, int], ...]:
    """Joins letters, (owner, word, place), of wrong owners to (word, first, last)."""
    parts: dict[tuple[int, int], list[int]] = {}
    for owner, word, place in letters:
        if owner in wrong:
            parts.setdefault((word, owner), []).append(place)
    return tuple((word, places[0], places[-1]) for (word, _), places in parts.items())


def _alignment(wanted: str, shown: str) -> list[tuple[int | None, int | None]]:
    """Returns pairs of positions in two texts; None where a letter has no partner."""
    letters, rows = _codes(wanted), [np.arange(len(wanted) + 1)]
    for letter in shown:
        rows.append(_next_row(rows[-1], letters, letter))
    table = np.array(rows).tolist()
    i, j = len(wanted), len(shown)
    pairs: list[tuple[int | None, int | None]] = []
    while i or j:
        here = table[j][i]
        if i and j and here == table[j - 1][i - 1] + (wanted[i - 1] != shown[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif i and here == table[j][i - 1] + 1:
            i -= 1
            pairs.append((i, None))
        else:
            j -= 1
            pairs.append((None, j))
    return pairs[::-1]
