"""How much memory weights take, and how much a device has left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

SPARE: Final = 4 * 2**30
"""Bytes kept for what is computed beside the weights: about a 1024 x 1024 picture's decoding.

Larger batches are halved when memory runs out, so that this need not be exact.
"""


def weight_bytes(modules: Iterable[Any]) -> int:
    """Returns the bytes of all parameters and buffers; shared ones count once."""
    held = {id(t): t.nbytes for m in modules for t in (*m.parameters(), *m.buffers())}
    return sum(held.values())


def free_bytes(device: str) -> int | None:
    """Returns the bytes that may still be taken of a GPU; None = another device, not counted."""
    import torch

    if not device.startswith("cuda"):
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def fits_on_device(nbytes: int, device: str) -> bool:
    """Says whether weights can be brought to a device, with something to spare."""
    free = free_bytes(device)
    return free is None or nbytes + SPARE <= free


def release(device: str) -> None:
    """Gives memory back that is kept for later on a GPU, for others to take."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.empty_cache()
