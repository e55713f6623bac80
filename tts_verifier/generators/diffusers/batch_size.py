"""How many pictures are drawn at a time: as many as memory holds.

A given number is kept, and every batch filled up to it, so that pictures do not depend on
the batch at all. Without one the number is found: on a GPU from the memory that the last
batch took, elsewhere it is 8. When memory runs out either is halved, once and for all.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from tts_verifier.errors import RunWarning
from tts_verifier.memory import free_bytes

T = TypeVar("T")
U = TypeVar("U")

_FIRST: Final = {"cuda": 4}
_ELSEWHERE: Final = 8
_MOST: Final = 64
_SHARE: Final = 0.8
"""Of the free memory: what the next batch may take by measure."""


class Room:
    """Draws work in pieces that fit.

    `limit`: how many at a time, now. `fixed`: whether the number was given.

    Args:
        given: how many at a time; None = find out.
        device: a torch device, such as "cuda:0".
        memory: returns the most bytes in use since it was last asked, those in use now, and
            those still free.
    """

    def __init__(
        self,
        given: int | None,
        device: str = "cpu",
        *,
        memory: Callable[[], tuple[int, int, int]] | None = None,
    ) -> None:
        self.fixed = given is not None
        kind = device.split(":")[0]
        self.limit = given or _FIRST.get(kind, _ELSEWHERE)
        watch = kind == "cuda" and not self.fixed
        self._memory = memory or (partial(_cuda, device) if watch else None)

    def work(self, draw: Callable[[Sequence[T]], list[U]], items: Sequence[T]) -> list[U]:
        """Draws all items, in order, as many at a time as fit.

        Raises:
            RuntimeError: not even one fits.
        """
        done: list[U] = []
        while len(done) < len(items):
            piece = items[len(done) : len(done) + self.limit]
            made = self._tried(draw, piece)
            if made is None:
                self._halve()
            else:
                done += made
        return done

    def _tried(self, draw: Callable[[Sequence[T]], list[U]], piece: Sequence[T]) -> list[U] | None:
        before = 0 if self._memory is None else self._memory()[1]
        try:
            made = draw(piece)
        except RuntimeError as error:
            if self.limit == 1 or not out_of_memory(error):
                raise
            return None
        if self._memory is not None:
            most, _, free = self._memory()
            each = max((most - before) / len(piece), 1)
            self.limit = int(min(max(free * _SHARE / each, 1), _MOST))
        return made

    def _halve(self) -> None:
        # Outside of the handler: a traceback would keep the tensors of the failed batch.
        self.limit //= 2
        self._memory = None
        gc.collect()
        _empty_cache()
        warnings.warn(
            f"Memory ran out; from now on {self.limit} pictures are drawn at a time.",
            RunWarning,
            stacklevel=5,
        )


def out_of_memory(error: Exception) -> bool:
    """Says whether an error is that of a full memory, of whatever device."""
    import torch

    full = isinstance(error, torch.OutOfMemoryError)
    return full or "out of memory" in str(error) or "can't allocate memory" in str(error)


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _cuda(device: str) -> tuple[int, int, int]:
    import torch

    gpu: Any = torch.cuda
    most, now = gpu.max_memory_allocated(device), gpu.memory_allocated(device)
    free = free_bytes(device) or 0
    gpu.reset_peak_memory_stats(device)
    return most, now, free
