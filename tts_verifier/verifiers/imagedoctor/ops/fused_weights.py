"""Weights that share an input, as one matrix: one large product is faster than several."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def joined(parts: Sequence[nn.Parameter], *, gap: int = 0) -> Tensor:
    """Returns the rows of all parts as one tensor that shares their memory.

    The first time they are copied together; later they are found to lie so already.

    Args:
        parts: rows of one width.
        gap: rows of zeros after each.
    """
    first, lies = parts[0], True
    behind = first.data_ptr()
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        lies = lies and same and part.is_contiguous() and part.data_ptr() == behind
        behind += part.nbytes + gap * part[0].nbytes
    rows = [len(part) + gap for part in parts]
    if lies and behind <= first.untyped_storage().data_ptr() + first.untyped_storage().nbytes():
        return first.detach().as_strided((sum(rows), *first.shape[1:]), first.stride())
    whole = first.new_zeros(sum(rows), *first.shape[1:])
    for part, place in zip(parts, whole.split(rows), strict=True):
        place[: len(part)] = part.detach()
        part.data = place[: len(part)]
    return whole
