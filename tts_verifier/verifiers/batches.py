"""Splits a call into batches that fit into memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

from tts_verifier.errors import InputError
from tts_verifier.loading.memory import release

Given = TypeVar("Given")
Result = TypeVar("Result")


class HalvedBatches:
    """Computes as many items at a time as fit: when memory runs out, the number is halved.

    Not safe to share between threads; a verifier uses it with its model's lock.

    Args:
        size: items at a time, at first.

    Attributes:
        size: items at a time, at present; it stays halved.

    Raises:
        InputError: `size` is no integer from 1.
    """

    def __init__(self, size: int) -> None:
        # bool is a subclass of int.
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(
                f"batch_size must be an integer from 1, got {size!r}.", argument="batch_size"
            )
        self.size = size

    def run(
        self,
        compute: Callable[[Sequence[Given]], list[Result]],
        items: Sequence[Given],
        device: str,
    ) -> list[Result]:
        """Returns a result for each item, in order.

        Args:
            compute: returns a result for each item of a batch.
            items: of the whole call.
            device: whose cached memory is released when memory runs out.

        Raises:
            torch.OutOfMemoryError: memory does not suffice for a single item.
        """
        import torch

        results: list[Result] = []
        while len(results) < len(items):
            batch = items[len(results) : len(results) + self.size]
            try:
                results += compute(batch)
                continue
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self.size = len(batch) // 2
            # Outside the handler: the error's traceback holds the tensors of the failed batch.
            gc.collect()
            release(device)
        return results
