"""Fuses weights that share an input into one matrix: one large product beats several small ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def fuse_rows(parts: Sequence[nn.Parameter], *, gap: int = 0) -> Tensor:
    """Returns the rows of all parameters as one tensor that shares their memory.

    The first call copies the parameters side by side and **re-points `parameter.data` of the
    caller's model** into the copy, so no weight is held twice. Names, shapes, values and the
    state dict stay as they are, and an in-place update of a parameter (an optimiser's step,
    `load_state_dict`) is seen in the fused matrix. Later calls find the parameters side by side
    and return a view of them without copying. `model.to(device)` separates them again; the next
    call then fuses them anew.

    Args:
        parts: matrices of equal width, or vectors.
        gap: rows of zeros after each part.

    Returns:
        (rows of all parts and gaps, width), detached from the autograd graph.
    """
    first, adjacent = parts[0], True
    expected = first.data_ptr()
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        adjacent = adjacent and same and part.is_contiguous() and part.data_ptr() == expected
        expected += part.nbytes + gap * part[0].nbytes
    # Neighbours by chance may lack the memory for the last gap.
    rows = [len(part) + gap for part in parts]
    end = first.untyped_storage().data_ptr() + first.untyped_storage().nbytes()
    if adjacent and expected <= end:
        return first.detach().as_strided((sum(rows), *first.shape[1:]), first.stride())
    fused = first.new_zeros(sum(rows), *first.shape[1:])
    for part, place in zip(parts, fused.split(rows), strict=True):
        place[: len(part)] = part.detach()
        part.data = place[: len(part)]
    return fused
