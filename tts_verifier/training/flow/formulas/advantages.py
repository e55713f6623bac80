"""Advantages of pictures, and of the latent places of pictures: how much better than their group.

The forms (arXiv 2510.01010 and the official train_sd3_hp.py; H is the map of what is wrong):

    scalar    R, the reward of the picture
    mask      as scalar, times 1 - H (official at f541579)
    dense     R (1 - H), compared place by place (official since 66da035)
    penalty   R - c sigma_group H, compared place by place (BoxFlow-GRPO, arXiv 2606.06113)

All are the difference from the group's mean, over a deviation + 1e-4, bounded. The deviation is
that of all rewards of the step (official), or that of the group, at each place where rewards are
maps (the paper). Deviations are those of populations, as in numpy. With maps of zeros `mask`,
`dense` and `penalty` equal `scalar`.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tts_verifier.types import Heatmap

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
    if kind == "dense":
        rewards = rewards * (1 - wrong)
    elif kind == "penalty":
        rewards = rewards - penalty * _group_std(rewards, counts) * wrong
    inside = _group_std(rewards, counts)
    varies = inside.amax((1, 2, 3)) > _SAME
    divisor = inside if deviation == "group" else _std_of_all(rewards, counts)
    values = (rewards - _group_mean(rewards, counts)) / (divisor + _EPSILON)
    values = values.clamp(-most, most)
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


def pool_map(heatmap: Heatmap, grid: tuple[int, int]) -> NDArray[np.float32]:
    """Returns the mean of a map over each latent place: float32 (h, w).

    The part of the map that the image covers is cut into h x w equal fields, whatever both grids
    are. A cell of the map that several fields share counts for each by the area of the overlap, so
    the mean over the image is kept. Where h and w divide the map this is average pooling.
    """
    x1, y1, x2, y2 = heatmap.box
    rows = _overlaps(heatmap.grid.shape[0], y1, y2, grid[0])
    columns = _overlaps(heatmap.grid.shape[1], x1, x2, grid[1])
    return (rows @ heatmap.grid @ columns.T).astype(np.float32)


def _overlaps(cells: int, start: float, end: float, fields: int) -> NDArray[np.float64]:
    """Returns the share of each field that each cell covers: (fields, cells), rows sum to 1."""
    edges = cells * np.linspace(start, end, fields + 1)
    cell = np.arange(cells)
    low = np.maximum(edges[:-1, None], cell[None])
    high = np.minimum(edges[1:, None], cell[None] + 1)
    share: NDArray[np.float64] = np.maximum(high - low, 0)
    total: NDArray[np.float64] = share.sum(1, keepdims=True)
    return share / total
