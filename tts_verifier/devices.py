"""Where the parts of a run compute, and how two of them do it at once."""

from __future__ import annotations

from functools import cache
from typing import Any


def device_of(part: Any) -> str | None:
    """Returns where a generator or verifier says it computes, such as "cuda:0"; None: nowhere."""
    device = getattr(part, "device", None)
    return None if device is None else str(device)


def own_stream(device: str | None) -> None:
    """Gives the calling thread a stream of its own on a GPU, so that it need not wait for others.

    All threads share one stream else, in which kernels run one after another. Its kernels go
    first, as a verifier's are small and many: behind those of a drawing each would wait.
    """
    if device is None or not device.startswith("cuda"):
        return
    import torch

    # What other threads have asked of the device so far, such as the weights, is there.
    torch.cuda.synchronize(device)
    torch.cuda.set_stream(_stream(device))


@cache
def _stream(device: str) -> Any:
    """One for all runs: memory that a stream has used is kept for it."""
    import torch

    return torch.cuda.Stream(device, priority=-1)
