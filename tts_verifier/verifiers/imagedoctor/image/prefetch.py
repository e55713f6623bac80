"""Prepares inputs in host threads while a GPU works on the inputs before them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

import torch

In = TypeVar("In")
Out = TypeVar("Out")

AHEAD: Final = 32
"""The most images that are prepared for a GPU before it needs them; each takes some 0.8 MB."""
_AHEAD_PER_THREAD: Final = 4


def map_ahead(
    prepare: Callable[[In], Out],
    items: Iterable[In],
    device: torch.device,
    *,
    ahead: int = AHEAD,
) -> Iterator[Out]:
    """Maps `prepare` over the items in order, up to `ahead` results early beside a GPU.

    On a CPU nothing is prepared early, because the model needs the cores.

    Args:
        prepare: called in several threads at a time, so it must be safe for that.
        items: the inputs; taken lazily.
        device: where the model runs.
        ahead: the most results that wait to be consumed.

    Raises:
        Exception: whatever `prepare` raises, in the place of the item's result.
    """
    if device.type == "cpu":
        yield from map(prepare, items)
        return
    # Leaving the block waits for the threads, also when the caller stops early.
    with ThreadPoolExecutor(-(-ahead // _AHEAD_PER_THREAD)) as threads:
        pending: deque[Future[Out]] = deque()
        for item in items:
            pending.append(threads.submit(prepare, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
