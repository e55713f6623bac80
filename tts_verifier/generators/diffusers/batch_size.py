"""How many images are generated at a time: as many as memory holds.

If the user sets a number, it is used, and every batch is filled up to it, so that an image does not
depend on its batch at all. Otherwise a GPU's batch size follows from the memory that the last batch
took, and elsewhere it is 8. When memory runs out, the size is halved and stays halved.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from tts_verifier.errors import RunWarning, is_out_of_memory
from tts_verifier.loading.memory import free_bytes

Item = TypeVar("Item")
Output = TypeVar("Output")

_FIRST_ON_GPU: Final = 4
_FIRST_ELSEWHERE: Final = 8
_LARGEST_BATCH: Final = 64
_SHARE_OF_FREE: Final = 0.8
"""The share of the free memory that the next batch is allowed to take."""


class MemoryUse(NamedTuple):
    """The memory of a device, in bytes."""

    peak: int
    """The most that was in use since the last measurement."""
    allocated: int
    """What is in use now."""
    free: int
    """What may still be taken."""


class BatchSize:
    """Splits items into batches that fit into memory, and learns how many fit.

    Not safe to share between threads; a generator uses it with its pipeline's lock.

    Args:
        given: the number of items at a time that the user set; None = find it out.
        device: a torch device, such as "cuda:0".
        memory: measures the device; None = torch's counters on a GPU if the user set no number, and
            no measurement elsewhere.

    Attributes:
        limit: the number of items at a time, at present.
        fixed: whether the user set the number.
    """

    def __init__(
        self,
        given: int | None,
        device: str = "cpu",
        *,
        memory: Callable[[], MemoryUse] | None = None,
    ) -> None:
        self.fixed = given is not None
        on_gpu = device.split(":")[0] == "cuda"
        self.limit = given or (_FIRST_ON_GPU if on_gpu else _FIRST_ELSEWHERE)
        measured = on_gpu and not self.fixed
        self._memory = memory or (partial(_gpu_memory, device) if measured else None)

    def run(
        self, generate: Callable[[Sequence[Item]], list[Output]], items: Sequence[Item]
    ) -> list[Output]:
        """Calls `generate` for all items, in order, with as many at a time as fit.

        Raises:
            RuntimeError: not even one item fits.
        """
        outputs: list[Output] = []
        while len(outputs) < len(items):
            batch = items[len(outputs) : len(outputs) + self.limit]
            output = self._try_batch(generate, batch)
            if output is None:
                self._halve()
            else:
                outputs += output
        return outputs

    def _try_batch(
        self, generate: Callable[[Sequence[Item]], list[Output]], batch: Sequence[Item]
    ) -> list[Output] | None:
        """Returns the outputs of a batch, None if memory ran out."""
        before = 0 if self._memory is None else self._memory().allocated
        try:
            outputs = generate(batch)
        except RuntimeError as error:
            if self.limit == 1 or not is_out_of_memory(error):
                raise
            return None
        if self._memory is not None:
            use = self._memory()
            # At least a byte: a batch within memory that was already in use shows no growth.
            per_item = max((use.peak - before) / len(batch), 1)
            self.limit = int(min(max(use.free * _SHARE_OF_FREE / per_item, 1), _LARGEST_BATCH))
        return outputs

    def _halve(self) -> None:
        # Not in the exception handler: the traceback would keep the failed batch's tensors alive.
        self.limit //= 2
        # Measurements promised too much, and another one would raise the size again.
        self._memory = None
        # Tensors in reference cycles stay allocated until the collector runs.
        gc.collect()
        _empty_gpu_cache()
        warnings.warn(
            f"Memory ran out; from now on {self.limit} images are generated at a time.",
            RunWarning,
            stacklevel=5,
        )


def _empty_gpu_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _gpu_memory(device: str) -> MemoryUse:
    """Measures a GPU, and starts a new measurement of the peak."""
    import torch

    gpu: Any = torch.cuda
    use = MemoryUse(
        gpu.max_memory_allocated(device), gpu.memory_allocated(device), free_bytes(device) or 0
    )
    gpu.reset_peak_memory_stats(device)
    return use
