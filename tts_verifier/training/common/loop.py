"""The training loop: steps until the time is up, a learning rate, averaged weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

WARM_UP_SHARE: Final = 0.03
"""Share of a stage, at its start, in which the learning rate rises."""
DECAY_SHARE: Final = 0.5
"""Share of a stage, at its end, in which the learning rate falls to 0."""

NamedLosses = dict[str, Tensor]
"""Name -> scalar on the training device. `total` is minimised, the others are printed."""


@dataclass(frozen=True, slots=True)
class Periodic:
    """An action that is repeated during training, such as saving."""

    seconds: float
    """How long to wait between the end of one call and the next."""
    action: Callable[[], None]
    """The function to call."""


def train_for(
    minutes: float,
    step: Callable[[float], NamedLosses],
    *,
    print_seconds: float,
    periodic: Sequence[Periodic] = (),
) -> None:
    """Takes training steps until the time is up, printing mean losses on the way.

    Args:
        minutes: length of the training.
        step: takes one step; its argument is the share of the time that has passed, in [0, 1).
        print_seconds: seconds between two lines of mean losses.
        periodic: actions that are called when they are due, and once more, in order, at the end.
    """
    began = printed = time.monotonic()
    last_done = [began] * len(periodic)
    means = _MeanLosses()
    steps = 0
    while (now := time.monotonic()) - began < 60 * minutes:
        means.add(step((now - began) / (60 * minutes)))
        steps += 1
        if now - printed > print_seconds:
            passed = now - began
            print(
                f"{passed:5.0f} s, step {steps}, {steps / max(passed, 1e-9):.1f} steps/s, "
                f"{max(60 * minutes - passed, 0):.0f} s left: {means.describe()}",
                flush=True,
            )
            printed, means = now, _MeanLosses()
        for i, task in enumerate(periodic):
            if now - last_done[i] > task.seconds:
                task.action()
                last_done[i] = time.monotonic()
    for task in periodic:
        task.action()


class _MeanLosses:
    """Adds up losses on their device, so that only printing the means waits for the GPU."""

    def __init__(self) -> None:
        self._sums: NamedLosses = {}
        self._count = 0

    def add(self, losses: NamedLosses) -> None:
        """Adds the losses of one step, which have the same names at every step."""
        self._count += 1
        if not self._sums:
            # Copies, because a captured step overwrites its result at the next replay; float32,
            # because a sum in bfloat16 would soon stop growing.
            self._sums = {n: loss.to(torch.float32, copy=True) for n, loss in losses.items()}
            return
        torch._foreach_add_(list(self._sums.values()), list(losses.values()))

    def describe(self) -> str:
        """Lists the mean losses, as `total 0.1234, text 0.0567`."""
        means = (torch.stack([*self._sums.values()]) / self._count).tolist()
        return ", ".join(f"{name} {mean:.4f}" for name, mean in zip(self._sums, means, strict=True))


class WeightAverage:
    """An exponential moving average of a model's weights.

    The decay starts low, so that the average forgets the first, random weights quickly. Not safe
    to share between threads.

    Attributes:
        model: a copy of the model that holds the average; it takes no gradients.
        decay: the share of the old average that a step keeps, once training is under way.
        steps: updates so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.steps = 0
        self._average = [p.detach() for p in self.model.parameters()]
        self._live = [p.detach() for p in model.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the model by one step."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(self._average, self._live, 1 - decay)


def learning_rate(peak: float, progress: float) -> float:
    """Returns the learning rate at `progress` in [0, 1]: a rise, a plateau, a linear fall."""
    return peak * min(1.0, progress / WARM_UP_SHARE, max(0.0, 1 - progress) / DECAY_SHARE)
