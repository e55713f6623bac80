"""Sums over maps brought to SIDE x SIDE pixels, without making the large maps.

The official trainer brings maps to 288 x 288 by OpenCV's bilinear resizing: half-pixel centres,
edges repeated, no smoothing when a map becomes smaller. Along an axis that is a matrix R of
(SIDE, H) with at most two weights a row, side by side, so that R m C' is the resized map m. Then:

- The sum over a rectangle is u' m v, with u and v the sums of the rows of R and C in it.
- The sum of squares of R d is that of L d, where L'L = R'R. As R'R has entries next to its
  diagonal only, its Cholesky factor L has two a row. So the squared error of two small maps takes a
  few passes over their own pixels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from tts_verifier.training.grpo.rewards.completions import SIDE, Reals


@lru_cache(maxsize=16)
def resize_weights(size: int) -> Reals:
    """Returns the bilinear resizing of one axis as a matrix (SIDE, size)."""
    source = (np.arange(SIDE) + 0.5) * size / SIDE - 0.5
    source = source.clip(0, size - 1)
    before = np.floor(source).astype(int)
    weights = np.zeros((SIDE, size))
    rows = np.arange(SIDE)
    weights[rows, before] = 1 - (source - before)
    weights[rows, np.minimum(before + 1, size - 1)] += source - before
    return weights


def enlarged_sum(grid: Tensor) -> float:
    """Returns the sum of a map (H, W) over the SIDE x SIDE pixels of its resized form."""
    rows, columns = (_sums_of_rows(size)[-1].astype(np.float32) for size in grid.shape)
    return float(grid.numpy() @ columns @ rows)


def sums_up_to(grid: Tensor, ys: NDArray[np.int64], xs: NDArray[np.int64]) -> Reals:
    """Returns the sums of a resized map over its first rows and columns.

    Args:
        grid: float32 (H, W) on the CPU.
        ys: edges in [0, SIDE], increasing.
        xs: the same for columns.

    Returns:
        (len(ys), len(xs)), the sum over the rows and columns between the first edges and these.
    """
    rows, columns = (
        np.diff(_sums_of_rows(size)[edges], axis=0).astype(np.float32)
        for size, edges in zip(grid.shape, (ys, xs), strict=True)
    )
    sums = np.zeros((len(ys), len(xs)))
    # Added up from cells, none of which is negative, so nothing cancels.
    sums[1:, 1:] = rows @ grid.numpy() @ columns.T
    return sums.cumsum(0).cumsum(1)


def squared_errors(predicted: Tensor, truth: Tensor) -> Tensor:
    """Returns the mean squared error of each pair of maps at SIDE x SIDE pixels.

    Args:
        predicted: float32 (B, H, W).
        truth: float32 (H', W'), on the same device.

    Returns:
        (B,).
    """
    if predicted.shape[1:] != truth.shape or max(truth.shape) > SIDE:
        predicted, truth = _resized(predicted), _resized(truth[None])[0]
    difference = predicted - truth
    if tuple(truth.shape) != (SIDE, SIDE):
        (row, row_next), (column, column_next) = (_factor(n, truth.device) for n in truth.shape)
        wide = difference * column
        wide[:, :, :-1].addcmul_(difference[:, :, 1:], column_next)
        torch.mul(wide, row[:, None], out=difference)
        difference[:, :-1].addcmul_(wide[:, 1:], row_next[:, None])
    # Row by row first: over all pixels at once float32 loses digits.
    lengths: Tensor = torch.linalg.vector_norm(difference, dim=2)
    return lengths.square().sum(1) / SIDE**2


def _resized(maps: Tensor) -> Tensor:
    """Resizes (B, H, W) to SIDE x SIDE."""
    if tuple(maps.shape[1:]) == (SIDE, SIDE):
        return maps
    large: Tensor = interpolate(maps[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False)
    return large[:, 0]


@lru_cache(maxsize=16)
def _sums_of_rows(size: int) -> Reals:
    """Returns the sums of the first 0, 1, … SIDE rows of the weights: (SIDE + 1, size)."""
    return np.concatenate([np.zeros((1, size)), resize_weights(size).cumsum(0)])


@lru_cache(maxsize=32)
def _factor(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the diagonal of L, (size,), and what stands right of it, (size - 1,)."""
    weights = resize_weights(size)
    lower = np.linalg.cholesky(weights.T @ weights)
    diagonal, beside = (torch.from_numpy(lower.diagonal(k).copy()) for k in (0, -1))
    return diagonal.to(device, torch.float32), beside.to(device, torch.float32)
