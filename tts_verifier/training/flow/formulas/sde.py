"""Steps of a flow's sampler that draw noise, and the log-probability of each latent place.

`sde` is the step of Flow-GRPO (arXiv 2505.05470, equation 9; official
sd3_sde_with_logprob.py), `cps` that of Flow-CPS (arXiv 2509.05952, the same file with
sde_type "cps"). Without noise both are the Euler step of the ordinary differential equation. A
velocity points from the image to the noise, and a level sigma falls from 1 to 0.
"""

from __future__ import annotations

import math
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

StepKind = Literal["sde", "cps"]

_LOG_ROOT_2_PI: Final = 0.5 * math.log(2 * math.pi)


class StepLaw(NamedTuple):
    """The normal distribution that a step draws the next latents from."""

    mean: Tensor
    """(B, C, h, w)."""
    std: Tensor
    """(B, 1, 1, 1); 0 for a step that draws nothing."""

    def draw(self, noise: Tensor) -> Tensor:
        """Returns the next latents for standard normal noise."""
        return self.mean + self.std * noise

    def log_prob(self, latents: Tensor) -> Tensor:
        """Returns the log-probability of each place, the mean over its channels: (B, h, w).

        Where nothing is drawn it is 0.
        """
        std = torch.where(self.std > 0, self.std, 1.0)
        distance = (latents - self.mean) / std
        found = (-0.5 * distance**2 - std.log() - _LOG_ROOT_2_PI).mean(1)
        return torch.where(self.std[:, 0] > 0, found, 0.0)

    def divergence(self, other: Tensor) -> Tensor:
        """Returns KL(this | the law with another mean), the mean over latent numbers: (B,)."""
        std = torch.where(self.std > 0, self.std, 1.0)
        found = ((self.mean - other) ** 2).mean((1, 2, 3)) / (2 * std.flatten() ** 2)
        return torch.where(self.std.flatten() > 0, found, 0.0)


def step_law(
    kind: StepKind,
    latents: Tensor,
    velocity: Tensor,
    *,
    sigma: Tensor,
    after: Tensor,
    largest: Tensor,
    noise: Tensor,
) -> StepLaw:
    """Returns the distribution of the latents after a step.

    Args:
        kind: "sde" or "cps".
        latents: float32 (B, C, h, w), before the step.
        velocity: likewise, the prediction.
        sigma: (B,), the level before the step.
        after: (B,), the level after it.
        largest: (B,), the level that stands for 1 where `sde` divides by 1 - sigma; officially
            that of the second step.
        noise: (B,), how much is drawn; 0 = the Euler step. `cps` takes [0, 1].
    """
    s, t, top, eta = (value.view(-1, 1, 1, 1) for value in (sigma, after, largest, noise))
    if kind == "cps":
        std = t * torch.sin(eta * (math.pi / 2))
        image, end = latents - s * velocity, latents + (1 - s) * velocity
        return StepLaw(image * (1 - t) + end * (t**2 - std**2).clamp(min=0).sqrt(), std)
    change = t - s
    spread = eta * (s / (1 - torch.where(s >= 1, top, s))).sqrt()
    drift = spread**2 / (2 * s)
    mean = latents * (1 + drift * change) + velocity * (1 + drift * (1 - s)) * change
    return StepLaw(mean, spread * (-change).sqrt())
