"""A training step as one CUDA graph: captured once, replayed with new inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor

WARM_UP_STEPS: Final = 3
"""Steps before the capture, after which every lazily made buffer exists.

They are real steps: the model trains three extra times on the first batch.
"""

StepResult = TypeVar("StepResult")


class CapturedStep(Generic[StepResult]):
    """Calls a step on a CPU; on a GPU captures it at the first call and replays it afterwards.

    The step must have static shapes, must not synchronise with the host and must leave its
    result on the device. A replay overwrites the result of the last one, so callers copy results
    that they use later. Not safe to share between threads.

    Args:
        step: takes tensors and returns a tensor or a dict of tensors.
    """

    def __init__(self, step: Callable[..., StepResult]) -> None:
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._result: StepResult | None = None

    def __call__(self, *inputs: Tensor) -> StepResult:
        """Takes one step; the inputs have the same shapes at every call."""
        if not inputs[0].is_cuda:
            return self._step(*inputs)
        if self._graph is None:
            self._capture(inputs)
        # A graph reads fixed addresses, so new inputs are copied to the captured ones.
        for static, new in zip(self._inputs, inputs, strict=True):
            static.copy_(new, non_blocking=True)
        if self._graph is None or self._result is None:
            raise RuntimeError("a captured step has a graph and a result")
        self._graph.replay()
        return self._result

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(t.clone() for t in inputs)
        # torch wants the warm-up on a side stream: the capture itself runs on one as well.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                self._step(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # "thread_local": the threads that pin memory may call CUDA during the capture.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = self._step(*self._inputs)


def mixed_precision(device: torch.device, *, enabled: bool = True) -> torch.autocast:
    """Returns a context with bfloat16 products on a GPU and plain float32 on a CPU.

    Args:
        device: of the products.
        enabled: False = float32 everywhere.
    """
    enabled = enabled and device.type == "cuda"
    # A cached bfloat16 copy of a weight would be captured once and never see an update.
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)
