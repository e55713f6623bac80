"""Sums over maps brought to SIDE x SIDE pixels, without making the large map.

The official trainer brings maps to 288 x 288 by OpenCV's bilinear resizing: half-pixel centres,
edges repeated, no smoothing when a map becomes smaller. Along an axis that is a matrix R of
(SIDE, H) with at most two weights a row, side by side, so R m C' is the resized map m, and:

- a sum over a rectangle is u' m v, with u and v the sums of the rows of R and C in it;
- the sum of squares of R d C' is that of d_ij (R'R)_ik d_kl (C'C)_lj, and R'R and C'C have
  entries next to their diagonal only. So the squared error of two maps costs a few passes over
  their own pixels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tts_verifier.training.grpo.rewards.completions import SIDE, Floats


@lru_cache(maxsize=16)
def resize_weights(size: int) -> Floats:
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
    rows, columns = (_as_tensor_of(resize_weights(n).sum(0), grid) for n in grid.shape)
    return float((grid @ columns).double() @ rows.double())


def cell_sums(grid: Tensor, ys: NDArray[np.int64], xs: NDArray[np.int64]) -> Floats:
    """Sums a resized map over the cells between given edges.

    Args:
        grid: float32 (H, W) on the CPU.
        ys: edges in [0, SIDE], increasing.
        xs: the same for columns.

    Returns:
        (len(ys) - 1, len(xs) - 1).
    """
    rows, columns = (
        _as_tensor_of(np.diff(_sums_of_rows(size)[edges], axis=0), grid)
        for size, edges in zip(grid.shape, (ys, xs), strict=True)
    )
    sums: Floats = (rows @ grid @ columns.T).numpy().astype(np.float64)
    return sums


def squared_errors(predicted: Tensor, truth: Tensor) -> Tensor:
    """Returns the mean squared error of each pair of maps at SIDE x SIDE pixels.

    Args:
        predicted: float32 (B, H, W).
        truth: float32 (H', W'), on the same device. Where the shapes differ both are resized.

    Returns:
        (B,).
    """
    if predicted.shape[1:] != truth.shape:
        predicted, truth = _resized(predicted), _resized(truth)
    difference = predicted - truth
    if tuple(truth.shape) == (SIDE, SIDE):
        return difference.square_().mean((1, 2))
    (row_same, row_next), (same, beside) = (_bands(n, truth.device) for n in truth.shape)
    weighted = difference * same
    weighted[..., :-1] += difference[..., 1:] * beside
    weighted[..., 1:] += difference[..., :-1] * beside
    total = (difference * weighted).sum(2) @ row_same
    total += 2 * ((difference[:, :-1] * weighted[:, 1:]).sum(2) @ row_next)
    # Rounding must not make an error negative.
    return (total / SIDE**2).clamp(min=0)


def _resized(maps: Tensor) -> Tensor:
    rows, columns = (_as_tensor_of(resize_weights(n), maps) for n in maps.shape[-2:])
    return rows @ maps @ columns.T


@lru_cache(maxsize=16)
def _sums_of_rows(size: int) -> Floats:
    """Returns the sums of the first 0, 1, … SIDE rows of the weights: (SIDE + 1, size)."""
    return np.concatenate([np.zeros((1, size)), resize_weights(size).cumsum(0)])


@lru_cache(maxsize=32)
def _bands(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the diagonal of R'R, (size,), and what stands beside it, (size - 1,)."""
    gram = resize_weights(size).T @ resize_weights(size)
    same, beside = (torch.from_numpy(gram.diagonal(k).copy()) for k in (0, 1))
    return same.to(device, torch.float32), beside.to(device, torch.float32)


def _as_tensor_of(values: Floats, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like)
