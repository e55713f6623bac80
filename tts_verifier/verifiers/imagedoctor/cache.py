"""Keys and values of past tokens, in buffers that grow by blocks.

transformers' dynamic cache copies everything at every token; this one writes in place. Its
`update` is all that the language model's attention asks of a cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128


class KeyValueCache:
    """One buffer pair a layer, (rows, heads, length, head size)."""

    def __init__(self, layers: int) -> None:
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers
        self._length = [0] * layers

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Appends (rows, heads, new, size) to a layer and returns all it holds."""
        start = self._length[layer]
        end = self._length[layer] = start + keys.shape[2]
        whole_keys = self._keys[layer] = _room(self._keys[layer], keys, end)
        whole_values = self._values[layer] = _room(self._values[layer], values, end)
        whole_keys[:, :, start:end] = keys
        whole_values[:, :, start:end] = values
        return whole_keys[:, :, :end], whole_values[:, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Keeps only these rows, in this order."""
        self._keys = [None if t is None else t[rows.to(t.device)] for t in self._keys]
        self._values = [None if t is None else t[rows.to(t.device)] for t in self._values]


def _room(buffer: Tensor | None, like: Tensor, length: int) -> Tensor:
    """Returns the buffer, or a longer copy of it when `length` does not fit."""
    if buffer is not None and buffer.shape[2] >= length:
        return buffer
    rows, heads, _, size = like.shape
    grown = like.new_zeros(rows, heads, -(-length // BLOCK) * BLOCK, size)
    if buffer is not None:
        grown[:, :, : buffer.shape[2]] = buffer
    return torch.as_tensor(grown)
