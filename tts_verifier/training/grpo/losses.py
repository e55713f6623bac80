"""The loss of GRPO: group-relative advantages, the clipped ratio, the KL estimate, the mean.

Sources: DeepSeekMath (Shao et al. 2024), equations 3 and 4, for `grpo`; Dr. GRPO (Liu et al. 2025),
section 3.2, for `dr_grpo`; DAPO (Yu et al. 2025), section 3.3, for `dapo`. Constants and the
normalisation of `grpo` are those of the official trainer (grpo_trainer.py of VLM-R1); a test holds
all of them to TRL 1.16.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from tts_verifier.training.grpo.settings import LossKind

STD_EPSILON: Final = 1e-4
"""Added to the standard deviation of a group."""
NO_VARIANCE: Final = 1e-5
"""A smaller standard deviation of a group's rewards is the rounding of equal maps, and none."""


def advantages_of(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Compares each reply with its group.

    Args:
        rewards: (groups, replies), the total rewards.

    Returns:
        The advantages, (groups, replies), and which groups have a variance, bool (groups,).
    """
    std = rewards.std(1, keepdim=True)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (std + STD_EPSILON)
    return advantages, std[:, 0] > NO_VARIANCE


class TokenLosses(NamedTuple):
    """What each token costs, all of one shape."""

    loss: Tensor
    """The clipped objective with its sign changed, plus beta times `kl`."""
    kl: Tensor
    """The estimate of the divergence from the reference; 0 without one."""
    clipped: Tensor
    """Bool, whether the clipping took the gradient away."""


def token_losses(
    log_probs: Tensor,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    *,
    epsilon: float,
    beta: float,
) -> TokenLosses:
    """Computes the loss of each token.

    Args:
        log_probs: (..., tokens), of the drawn tokens.
        old: the same before the first update with these replies, without gradients.
        reference: the same of the frozen reference; None = no divergence.
        advantages: (...), of the replies.
        epsilon: how far the ratio may leave 1.
        beta: of the divergence.
    """
    advantage = advantages[..., None]
    ratio = (log_probs - old).exp()
    bounded = ratio.clamp(1 - epsilon, 1 + epsilon)
    loss = -torch.minimum(ratio * advantage, bounded * advantage)
    clipped = torch.where(advantage < 0, ratio < 1 - epsilon, ratio > 1 + epsilon)
    clipped &= advantage != 0
    if reference is None:
        return TokenLosses(loss, torch.zeros_like(loss), clipped)
    kl = kl_estimate(log_probs, reference)
    return TokenLosses(loss + beta * kl, kl, clipped)


def kl_estimate(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Estimates KL(policy | reference) at tokens that the policy drew.

    Source: J. Schulman, "Approximating KL divergence" (2020), the estimator k3: unbiased and never
    negative.
    """
    difference = reference - log_probs
    return difference.exp() - difference - 1


def token_weights(
    kind: LossKind, chosen: Tensor, *, replies: int, tokens: int, most: int
) -> Tensor:
    """Returns the weight of each token; a step's loss is the weighted sum over all its tokens.

    Args:
        kind: `grpo`, the mean of the tokens of a reply and then of the replies, which prefers short
            good replies and long bad ones; `dr_grpo`, the sum over the most tokens that a reply may
            have, which prefers neither; `dapo`, the mean of all tokens.
        chosen: bool (..., tokens), where a reply has a token.
        replies: that the step's loss is a mean of, over all processes.
        tokens: which these replies have.
        most: tokens that a reply may have.
    """
    if kind == "grpo":
        divisor = replies * chosen.sum(-1, keepdim=True).clamp(min=1)
    else:
        constant = replies * most if kind == "dr_grpo" else tokens
        divisor = torch.full_like(chosen[..., :1], constant, dtype=torch.float32)
    return chosen / divisor.float()
