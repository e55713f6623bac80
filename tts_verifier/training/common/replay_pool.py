"""A pool of training rows, each used more than once, on the device that trains on them."""

from __future__ import annotations

import torch
from torch import Tensor


class ReplayPool:
    """Keeps the newest rows on their device and returns random ones.

    Not safe to share between threads.

    Args:
        size: number of rows to keep; a multiple of the rows added at a time.
        generator: picks the rows; its device is theirs.
    """

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self._size, self._generator = size, generator
        self._columns: tuple[Tensor, ...] = ()
        self._added = 0

    def add(self, *columns: Tensor) -> None:
        """Adds rows in place of the oldest ones; each column is (rows, ...)."""
        if not self._columns:
            self._columns = tuple(c.new_zeros(self._size, *c.shape[1:]) for c in columns)
        # No added block wraps around, because the size is a multiple of its length.
        start = self._added % self._size
        for stored, new in zip(self._columns, columns, strict=True):
            stored[start : start + len(new)] = new
        self._added += len(columns[0])

    def sample(self, count: int) -> tuple[Tensor, ...]:
        """Returns the columns of `count` random rows, picked with replacement."""
        filled, device = min(self._added, self._size), self._generator.device
        pick = torch.randint(filled, (count,), generator=self._generator, device=device)
        return tuple(column[pick] for column in self._columns)
