"""A training step as one CUDA graph: recorded once, replayed with new inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

WARM_UP: Final = 3
"""Steps before recording, so that every lazy buffer exists."""


class Captured:
    """Calls a step; on a GPU records it at the first call and replays it ever after.

    The step must have static shapes and no host synchronisation, and leave its result on the
    device. On a CPU it is simply called.
    """

    def __init__(self, step: Callable[..., Tensor]) -> None:
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._result: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Takes one step with inputs of the same shapes as always."""
        if not inputs[0].is_cuda:
            return self._step(*inputs)
        if self._graph is None:
            self._record(inputs)
        for held, new in zip(self._inputs, inputs, strict=True):
            held.copy_(new, non_blocking=True)
        if self._graph is None or self._result is None:
            raise RuntimeError("a recorded step has a graph and a result")
        self._graph.replay()
        return self._result

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(t.clone() for t in inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._step(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = self._step(*self._inputs)
