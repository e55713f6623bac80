"""Finds rows by 64-bit numbers, in 12 bytes a row."""

from __future__ import annotations

from bisect import bisect_right
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

_RECENT: Final = 2**16
"""Numbers that wait in a dictionary before they are sorted among the others."""
_FIRST_BITS: Final = 16
"""First bits of a number that say where it is: among a million hashes, some fifteen share them."""
_SHIFT: Final = 64 - _FIRST_BITS


class RowIndex:
    """Maps 64-bit numbers to rows; of two rows with the same number the later one counts.

    A dictionary of Python would take ten times the memory. Threads may share it.
    """

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._lock = Lock()
        self._keep(np.empty(0, np.uint64), np.empty(0, np.uint32))

    def get(self, number: int) -> int | None:
        """Returns the row of a number; None if there is none."""
        with self._lock:
            if (row := self._recent.get(number)) is not None:
                return row
            first, end = self._starts[number >> _SHIFT], self._starts[(number >> _SHIFT) + 1]
            place = bisect_right(self._numbers, number, first, end) - 1
            return self._rows[place] if place >= first and self._numbers[place] == number else None

    def add(self, number: int, row: int) -> None:
        """Notes the row of a number."""
        with self._lock:
            self._recent[number] = row
            if len(self._recent) > _RECENT:
                self._sort_in(
                    np.fromiter(self._recent.keys(), np.uint64, len(self._recent)),
                    np.fromiter(self._recent.values(), np.uint32, len(self._recent)),
                )
                self._recent.clear()

    def extend(self, numbers: NDArray[np.uint64], rows: NDArray[np.uint32]) -> None:
        """Notes the rows of many numbers."""
        with self._lock:
            self._sort_in(numbers, rows)

    def _sort_in(self, numbers: NDArray[np.uint64], rows: NDArray[np.uint32]) -> None:
        # Both stable and "right": of equal numbers, the later stays behind, where `get` looks.
        order = np.argsort(numbers, kind="stable")
        kept = np.asarray(self._numbers)
        places = kept.searchsorted(numbers[order], "right")
        # Less memory than sorting all of them again.
        self._keep(
            np.insert(kept, places, numbers[order]),
            np.insert(np.asarray(self._rows), places, rows[order]),
        )

    def _keep(self, numbers: NDArray[np.uint64], rows: NDArray[np.uint32]) -> None:
        # Views give Python's own integers, at a third of the time of NumPy's.
        self._numbers, self._rows = numbers.data, rows.data
        starts = numbers.searchsorted(
            np.arange(1 << _FIRST_BITS, dtype=np.uint64) << np.uint64(_SHIFT)
        )
        self._starts = np.append(starts, len(numbers)).astype(np.uint32).data
