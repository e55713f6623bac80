"""Work of the host beside a GPU: small tensors sent, and pictures prepared, without a wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

import torch
from torch import Tensor

In = TypeVar("In")
Out = TypeVar("Out")

_THREADS: Final = 8
_AHEAD: Final = 32
"""Pictures prepared and not yet asked for, at most: some 6 MB each."""


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Copies to the device; from ordinary memory torch would wait for all work before it."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def prepared(make: Callable[[In], Out], items: Iterable[In], device: torch.device) -> Iterator[Out]:
    """Maps in order; beside a GPU ahead of what is asked for, in threads.

    A CPU prepares what is asked for when it is asked for: its cores have the model to run.
    """
    if device.type == "cpu":
        yield from map(make, items)
        return
    with ThreadPoolExecutor(_THREADS) as threads:
        made: deque[Future[Out]] = deque()
        for item in items:
            made.append(threads.submit(make, item))
            if len(made) > _AHEAD:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()
