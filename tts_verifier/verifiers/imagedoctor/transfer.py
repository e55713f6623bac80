"""Small tensors from the host to a GPU, without waiting for what the GPU is doing."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Copies to the device; from ordinary memory torch would wait for all work before it."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
