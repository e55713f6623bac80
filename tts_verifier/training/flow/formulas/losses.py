"""The losses of pictures, of each latent place: policy gradient, AWM and DiffusionNFT's form.

`policy` clips the ratio of probabilities. Its ratio is that of the whole picture, with the gradient
of each place (official train_sd3_hp.py: s sg[...] p / sg[p]), or that of each place.

`awm` is advantage-weighted flow matching (arXiv 2509.25050), A |v - v*|^2, with a pull to the
reference. It is convex in v where A + pull is at least 0, so the recipe has pull 1 and A in
[-1, 1].

`nft` is the loss of DiffusionNFT (arXiv 2509.16117, equation 5) but for a constant. With r in
[0, 1], v+ = v_ref + b d and v- = v_ref - b d, where d = v - v_ref,

    r |v+ - v*|^2 + (1 - r) |v- - v*|^2 = |b d - A (v* - v_ref)|^2 + constant,   A = 2 r - 1.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

LossForm = Literal["policy", "awm", "nft"]
RatioKind = Literal["picture", "place"]


class PolicyLoss(NamedTuple):
    """What the places of pictures cost."""

    loss: Tensor
    """(B, h, w)."""
    ratio: Tensor
    """(B, h, w), without gradients."""
    clipped: Tensor
    """bool (B, h, w), whether the clipping took the gradient away."""


def policy_loss(
    log_probs: Tensor, old: Tensor, advantages: Tensor, *, ratio: RatioKind, clip: float
) -> PolicyLoss:
    """Computes the clipped loss of each place.

    Args:
        log_probs: (B, h, w), of the latents that were drawn.
        old: the same when they were drawn, without gradients.
        advantages: (B, h, w) or (B, 1, 1).
        ratio: "picture" or "place", see the module.
        clip: how far the ratio may leave 1.
    """
    if ratio == "picture":
        whole = (log_probs.detach().mean((1, 2)) - old.mean((1, 2))).exp()[:, None, None]
        # The second factor is 1, and has the gradient of the place's log-probability.
        quotient = whole * (log_probs - log_probs.detach()).exp()
    else:
        quotient = (log_probs - old).exp()
    bounded = quotient.clamp(1 - clip, 1 + clip)
    loss = -torch.minimum(quotient * advantages, bounded * advantages)
    found = quotient.detach()
    clipped = torch.where(advantages < 0, found < 1 - clip, found > 1 + clip) & (advantages != 0)
    return PolicyLoss(loss, found, clipped)


def awm_loss(
    velocity: Tensor, target: Tensor, reference: Tensor, advantages: Tensor, *, pull: float
) -> Tensor:
    """Computes the loss of each place, the mean over channels: (B, h, w).

    Args:
        velocity: (B, C, h, w), the prediction.
        target: likewise, noise - image.
        reference: likewise, the prediction of the reference.
        advantages: (B, h, w) or (B, 1, 1).
        pull: of the distance to the reference.
    """
    error = ((velocity - target) ** 2).mean(1)
    return advantages * error + pull * ((velocity - reference) ** 2).mean(1)


def nft_loss(
    velocity: Tensor, target: Tensor, reference: Tensor, advantages: Tensor, *, beta: float
) -> Tensor:
    """Computes the loss of each place, the mean over channels: (B, h, w).

    Args:
        velocity: (B, C, h, w), the prediction.
        target: likewise, noise - image.
        reference: likewise, the prediction of the reference.
        advantages: (B, h, w) or (B, 1, 1), in [-1, 1].
        beta: b of the module; a smaller one takes larger steps.
    """
    goal = advantages[:, None] * (target - reference)
    return ((beta * (velocity - reference) - goal) ** 2).mean(1)
