"""Rows that are learnt from more than once, on the device that learns from them."""

from __future__ import annotations

import torch
from torch import Tensor


class Pool:
    """Keeps the newest rows on their device and hands out random ones of them.

    Args:
        size: rows that are kept; a multiple of the rows added at a time.
        generator: picks, on the rows' device.
    """

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self._size, self._generator = size, generator
        self._rows: tuple[Tensor, ...] = ()
        self._added = 0

    def add(self, *rows: Tensor) -> None:
        """Puts rows, given column by column, in the place of the oldest."""
        if not self._rows:
            self._rows = tuple(column.new_zeros(self._size, *column.shape[1:]) for column in rows)
        start = self._added % self._size
        for held, new in zip(self._rows, rows, strict=True):
            held[start : start + len(new)] = new
        self._added += len(rows[0])

    def draw(self, count: int) -> tuple[Tensor, ...]:
        """Returns `count` random rows, with replacement."""
        filled, device = min(self._added, self._size), self._generator.device
        pick = torch.randint(filled, (count,), generator=self._generator, device=device)
        return tuple(column[pick] for column in self._rows)
