"""What every training loop here shares: the averaged weights and the learning rate."""

from __future__ import annotations

import copy
from typing import Final

import torch
from torch import nn

WARM: Final = 0.03
"""Share of a stage in which the learning rate rises."""
FALL: Final = 0.5
"""Share of a stage at its end in which it falls to nothing."""


class Average:
    """An exponential moving average of a model's weights; `model` is a copy that holds it.

    The decay starts low, so that the first steps are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.steps = 0
        self._pairs = _tensors(self.model), _tensors(model)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the model by one step."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        held, live = self._pairs
        torch._foreach_lerp_(held, live, 1 - decay)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach() for p in model.parameters()]


def rate(peak: float, progress: float) -> float:
    """Returns the learning rate at `progress` in [0, 1]: a rise, a plateau, a linear fall."""
    return peak * min(1.0, progress / WARM, max(0.0, 1 - progress) / FALL)
