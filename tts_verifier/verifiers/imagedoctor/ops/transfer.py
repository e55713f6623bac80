"""Copies from the host to a device without stalling the host."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copies a host tensor to a device; on a GPU the copy is asynchronous.

    From ordinary (pageable) memory torch would wait for all work that was queued before, so
    the values go through pinned memory.
    """
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
