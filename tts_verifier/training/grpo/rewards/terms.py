"""The formulas of the rewards: numbers in, numbers out, a whole batch at a time.

Source: modify/VLM-R1/src/open_r1/grpo_jsonl_np.py of the official repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tts_verifier.training.grpo.rewards.columns import TrueMap, check_range
from tts_verifier.training.grpo.rewards.completions import SIDE, Answers, Floats
from tts_verifier.training.grpo.rewards.enlarging import cell_sums, squared_errors

Scaling = Literal["code", "paper"]
"""Whose factors the scores' and the maps' errors get."""

SCORE_FACTOR: Final = 3.0
"""Of a score's error in the code."""
MAP_FACTORS: Final = {"misalignment": 80.0, "artifact": 40.0}
"""Of a map's mean squared error in the code."""
_TINY: Final = 1e-8
"""Added to the divisor of the coverage, as in the code."""
_PAIRS: Final = 2**22
"""Pairs of boxes that are compared at a time."""

Flags = NDArray[np.bool_]


def score_rewards(answers: Answers, truth: Floats, aspect: int, scaling: Scaling) -> Floats:
    """Returns 1 - factor * |score - truth|; 0 without an answer.

    Args:
        answers: of N completions.
        truth: (N, 4).
        aspect: the column.
        scaling: the factor is 3 in the code and 1 in the paper.
    """
    factor = SCORE_FACTOR if scaling == "code" else 1.0
    rewards = 1 - factor * np.abs(answers.scores[:, aspect] - truth[:, aspect])
    return np.where(answers.answered, rewards, 0.0)


def map_rewards(errors: Floats, kind: str, scaling: Scaling) -> Floats:
    """Returns 1 - factor * mean squared error, at least 0.

    Args:
        errors: (N,), mean squared errors at SIDE x SIDE pixels, in [0, 1].
        kind: a key of MAP_FACTORS.
        scaling: the factor is that of MAP_FACTORS in the code and 1 in the paper.
    """
    factor = MAP_FACTORS[kind] if scaling == "code" else 1.0
    return 1 - np.clip(factor * errors, 0, 1)


def map_errors(predicted: Sequence[Tensor | None], truths: Sequence[TrueMap], name: str) -> Floats:
    """Returns the mean squared error of each map against its truth, (N,).

    Args:
        predicted: float32 (H, W), on any device; None = zeros.
        truths: of the same completions.
        name: of the maps, for messages.

    Raises:
        InputError: a predicted map has a NaN or leaves [0, 1].
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, (found, true) in enumerate(zip(predicted, truths, strict=True)):
        key = (id(true),) if found is None else (id(true), found.device, found.shape)
        groups.setdefault(key, []).append(row)
    blocks = []
    for rows in groups.values():
        truth, first = truths[rows[0]].grid, predicted[rows[0]]
        truth = truth if first is None else truth.to(first.device)
        for some in _launches(rows, truth.device):
            maps = _stacked([predicted[row] for row in some], truth)
            blocks.append((some, squared_errors(maps, truth), torch.stack(maps.aminmax())))
    # Read when everything is launched, so that the host waits for an accelerator once.
    errors = np.zeros(len(predicted))
    for some, found_errors, ends in blocks:
        check_range(*ends.tolist(), f"{name}[{some[0] if len(some) == 1 else some}]")
        errors[some] = found_errors.cpu().numpy()
    return errors


def mean_overlaps(boxes: Sequence[Floats]) -> Floats:
    """Returns the mean IoU over the pairs of each completion's boxes; 0 without a pair."""
    counts = np.array([len(some) for some in boxes], int)
    means = np.zeros(len(boxes))
    for count in np.unique(counts[counts > 1]):
        rows = np.flatnonzero(counts == count)
        parts = -(-len(rows) * int(count) ** 2 // _PAIRS)
        for part in np.array_split(rows, parts):
            means[part] = _mean_overlap(np.stack([boxes[row] for row in part]))
    return means


def inside_boxes(boxes: Floats, truth: TrueMap) -> tuple[float, float]:
    """Compares the boxes of one completion with a map on which something is marked.

    Args:
        boxes: (K, 4), in the frame of SIDE.
        truth: its total is above 0.

    Returns:
        The mean over the boxes of the mean of the map inside each (compactness), and the share of
        the map inside at least one (coverage). Boxes end on whole pixels, truncated and cut at
        the picture's edge; those without a pixel do not count.
    """
    pixels = np.clip(np.trunc(boxes), 0, SIDE).astype(np.int64)
    x1, y1, x2, y2 = pixels[(pixels[:, 0] < pixels[:, 2]) & (pixels[:, 1] < pixels[:, 3])].T
    if not len(x1):
        return 0.0, 0.0
    # All boxes end at edges, between which lie cells: few numbers instead of many pixels.
    ys, xs = np.unique([y1, y2]), np.unique([x1, x2])
    cells = cell_sums(truth.grid, ys, xs)
    top, bottom = np.searchsorted(ys, [y1, y2])
    left, right = np.searchsorted(xs, [x1, x2])
    table = np.pad(cells.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    covered = np.zeros(cells.shape, bool)
    for row, end, column, stop in zip(top, bottom, left, right, strict=True):
        covered[row:end, column:stop] = True
    compactness = float(np.mean(inside / ((y2 - y1) * (x2 - x1))))
    return compactness, float(cells[covered].sum() / (truth.total + _TINY))


def with_edge_rules(values: Floats, marked: Flags, boxed: Flags) -> Floats:
    """Applies the rules of all six rewards of boxes where a side has nothing.

    Args:
        values: (N,), used where something is marked and boxed.
        marked: (N,), whether the truth is above 0 anywhere.
        boxed: (N,), whether the completion has boxes.

    Returns:
        (N,): 1 where neither is, 0 where one of them is.
    """
    return np.where(marked & boxed, values, np.where(marked | boxed, 0.0, 1.0))


def _launches(rows: list[int], device: torch.device) -> list[list[int]]:
    """Splits rows: one map stays in a core's cache, an accelerator takes all at once."""
    return [[row] for row in rows] if device.type == "cpu" else [rows]


def _stacked(maps: Sequence[Tensor | None], truth: Tensor) -> Tensor:
    """Returns (B, H, W); None becomes zeros of the truth's shape."""
    filled = [torch.zeros_like(truth) if some is None else some for some in maps]
    return filled[0].unsqueeze(0) if len(filled) == 1 else torch.stack(filled)


def _mean_overlap(boxes: Floats) -> Floats:
    """Returns the mean IoU over the pairs of K boxes, for (N, K, 4)."""
    x1, y1, x2, y2 = np.moveaxis(boxes, 2, 0)
    width, height = (
        np.minimum(end[:, :, None], end[:, None]) - np.maximum(start[:, :, None], start[:, None])
        for start, end in ((x1, x2), (y1, y2))
    )
    shared = width.clip(min=0) * height.clip(min=0)
    area = (x2 - x1).clip(min=0) * (y2 - y1).clip(min=0)
    union = area[:, :, None] + area[:, None] - shared
    overlap = np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
    count = boxes.shape[1]
    # Each pair is there twice, and each box with itself once.
    itself = np.trace(overlap, axis1=1, axis2=2)
    means: Floats = (overlap.sum((1, 2)) - itself) / (count * (count - 1))
    return means
