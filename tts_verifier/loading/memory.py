"""How much memory weights take, and how much of a device is left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

SPARE: Final = 4 * 2**30
"""Bytes reserved for activations: about what decoding one image of 1024 x 1024 takes.

It need not be exact, because a batch is halved when memory runs out.
"""


def weight_bytes(modules: Iterable[Any]) -> int:
    """Returns the bytes of all parameters and buffers; shared ones count once."""
    # By identity, because tied weights are one tensor under several names.
    sizes = {id(t): t.nbytes for m in modules for t in (*m.parameters(), *m.buffers())}
    return sum(sizes.values())


def free_bytes(device: str) -> int | None:
    """Returns the bytes that are free on a GPU, torch's cache included; None for other devices."""
    import torch

    if not device.startswith("cuda"):
        return None
    # torch hands out its cached memory again, though the driver counts it as taken.
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + cached


def fits_on_device(nbytes: int, device: str) -> bool:
    """Says whether so many bytes of weights fit on a device, with `SPARE` bytes left.

    A device other than a GPU is taken to be large enough.
    """
    free = free_bytes(device)
    return free is None or nbytes + SPARE <= free


def release(device: str) -> None:
    """Releases torch's cached GPU memory, for other processes and other allocators."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.empty_cache()
