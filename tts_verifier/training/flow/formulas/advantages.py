"""Advantages of pictures, and of the latent places of pictures: how much better than their group.

The forms (arXiv 2510.01010 and the official train_sd3_hp.py; H is the map of what is wrong):

    scalar    R, the reward of the picture
    mask      as scalar, times 1 - H (official at f541579)
    dense     R (1 - H), compared place by place (official since 66da035)
    penalty   R - c sigma_group H, compared place by place (BoxFlow-GRPO, arXiv 2606.06113)

All are the difference from the group's mean, over a deviation + 1e-4, bounded. The deviation is
that of all rewards of the step (official), or that of the group, at each place where rewards are
maps (the paper). Deviations are those of populations, as in numpy. With maps of zeros `mask`,
`dense` and `penalty` equal `scalar`. Pictures of equal R have advantages of 0, unless `dense` takes
the deviation of the step, which keeps the differences of their maps small.

With the deviation of the group, 1e-4 is multiplied by the ratio of the deviations of the place and
of R where the former is larger. Without this (as in the paper), maps of pictures whose R hardly
differs would have full size; with it, advantages deviate at no place more than those of `scalar`.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

AdvantageKind = Literal["scalar", "mask", "dense", "penalty"]
Deviation = Literal["global", "group"]

_EPSILON: Final = 1e-4
"""Added to a deviation."""
_SAME: Final = 1e-5
"""Rewards of a group that deviate less than this are equal."""


class Advantages(NamedTuple):
    """The advantages of G groups of N pictures."""

    values: Tensor
    """float32 (G, N, h, w), or (G, N, 1, 1) for `scalar`; 0 for pictures that do not count."""
    varies: Tensor
    """bool (G,), whether the rewards of a group differ; the others have advantages 0."""
    counts: Tensor
    """bool (G, N), whether a picture has a reward, and a map where one is needed."""


def compare_pictures(
    kind: AdvantageKind,
    rewards: Tensor,
    maps: Tensor | None = None,
    *,
    deviation: Deviation = "global",
    most: float = 5.0,
    penalty: float = 1.0,
) -> Advantages:
    """Compares the pictures of each group.

    Args:
        kind: see the module.
        rewards: (G, N); NaN = not known: the picture is left out.
        maps: (G, N, h, w) in [0, 1], 1 = wrong, on the latent grid; NaN = not known, likewise.
            `scalar` needs none.
        deviation: "global" or "group".
        most: the bound of advantages.
        penalty: c of `penalty`.
    """
    rewards = rewards.double()[..., None, None]
    counts = rewards.isfinite()
    if kind == "scalar":
        maps = None
    elif maps is None:
        raise TypeError(f"advantages of the kind {kind} need maps")
    wrong: Tensor | float = 0.0
    if maps is not None:
        wrong = maps.double()
        counts = counts & wrong.isfinite().flatten(2).all(2)[..., None, None]
        wrong = torch.where(counts, wrong, 0.0)
    rewards = torch.where(counts, rewards, 0.0)
    spread = _group_std(rewards, counts)
    if kind == "dense":
        rewards = rewards * (1 - wrong)
    elif kind == "penalty":
        rewards = rewards - penalty * spread * wrong
    inside = _group_std(rewards, counts)
    if deviation == "group":
        varies = spread.flatten() > _SAME
        divisor = inside + _EPSILON * (inside / spread).clamp(min=1)
    else:
        varies = inside.amax((1, 2, 3)) > _SAME
        divisor = _std_of_all(rewards, counts) + _EPSILON
    values = ((rewards - _group_mean(rewards, counts)) / divisor).clamp(-most, most)
    if kind == "mask":
        values = values * (1 - wrong)
    values = torch.where(counts & varies[:, None, None, None], values, 0.0)
    return Advantages(values.float(), varies, counts[..., 0, 0])


def _group_mean(values: Tensor, counts: Tensor) -> Tensor:
    return (values * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp(min=1)


def _group_std(values: Tensor, counts: Tensor) -> Tensor:
    """Returns the deviation at each place of a group: (G, 1, h, w)."""
    return _group_mean((values - _group_mean(values, counts)) ** 2, counts).sqrt()


def _std_of_all(values: Tensor, counts: Tensor) -> Tensor:
    """Returns the deviation of all rewards of all places."""
    kept = values[counts.expand_as(values)]
    return kept.std(correction=0) if kept.numel() else values.new_zeros(())
