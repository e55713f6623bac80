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
from tts_verifier.training.grpo.rewards.completions import SIDE, Answers, Boxes, Reals
from tts_verifier.training.grpo.rewards.enlarging import squared_errors, sums_up_to

Scaling = Literal["code", "paper"]
"""Whose factors the scores' and the maps' errors get."""

SCORE_FACTOR: Final = 3.0
"""Of a score's error in the code."""
MAP_FACTORS: Final = {"misalignment": 80.0, "artifact": 40.0}
"""Of a map's mean squared error in the code."""
_NOT_ZERO: Final = 1e-8
"""Added to the divisor of the coverage, as in the code."""
_PAIRS: Final = 2**22
"""Pairs of boxes that are compared at a time."""
_TOGETHER: Final = 16
"""Most completions whose boxes are compared with one map at a time."""
_CACHED: Final = 2**17
"""Most pixels of maps that a CPU compares at a time, so that they stay in its cache."""

Flags = NDArray[np.bool_]


def score_rewards(answers: Answers, truth: Reals, aspect: int, scaling: Scaling) -> Reals:
    """Returns 1 - factor * |score - truth|; 0 without an answer.

    Args:
        answers: of N completions.
        truth: (N, 4).
        aspect: the column.
        scaling: the factor is 3 in the code and 1 in the paper.
    """
    factor = score_factor(scaling)
    rewards = 1 - factor * np.abs(answers.scores[:, aspect] - truth[:, aspect])
    return np.where(answers.answered, rewards, 0.0)


def score_factor(scaling: Scaling) -> float:
    """Returns the factor of a score's error."""
    return SCORE_FACTOR if scaling == "code" else 1.0


def map_rewards(errors: Reals, kind: str, scaling: Scaling) -> Reals:
    """Returns 1 - factor * mean squared error, at least 0.

    Args:
        errors: (N,), mean squared errors at SIDE x SIDE pixels, in [0, 1].
        kind: a key of MAP_FACTORS.
        scaling: the factor is that of MAP_FACTORS in the code and 1 in the paper.
    """
    factor = MAP_FACTORS[kind] if scaling == "code" else 1.0
    return 1 - np.clip(factor * errors, 0, 1)


def map_errors(predicted: Sequence[Tensor | None], truths: Sequence[TrueMap], name: str) -> Reals:
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
    order: list[int] = []
    errors: list[Tensor] = []
    ends: list[Tensor] = []
    for rows in groups.values():
        truth, first = truths[rows[0]].grid, predicted[rows[0]]
        truth = truth if first is None else truth.to(first.device)
        for some in _launches(rows, truth):
            maps = _stacked([predicted[row] for row in some], truth)
            low, high = maps.aminmax()
            order += some
            errors.append(squared_errors(maps, truth))
            ends += [low, high]
    if not order:
        return np.zeros(0)
    # Read when everything is launched, so that the host does not wait in between.
    low, high = torch.stack([end.cpu() for end in ends]).view(-1, 2).T
    if not ((low >= 0) & (high <= 1)).all():
        for row, found in enumerate(predicted):
            if found is not None:
                low, high = found.aminmax()
                check_range(float(low), float(high), f"{name}[{row}]")
    found_errors = np.zeros(len(order))
    found_errors[order] = torch.cat([some.cpu() for some in errors]).numpy()
    return found_errors


def mean_overlaps(boxes: Boxes) -> Reals:
    """Returns the mean IoU over the pairs of each completion's boxes; 0 without a pair."""
    counts, starts = boxes.counts, np.cumsum(boxes.counts) - boxes.counts
    means = np.zeros(len(counts))
    for count in np.unique(counts[counts > 1]).tolist():
        rows = np.flatnonzero(counts == count)
        for part in np.array_split(rows, -(-len(rows) * count**2 // _PAIRS)):
            means[part] = _mean_overlap(boxes.corners[starts[part][:, None] + np.arange(count)])
    return means


def inside_boxes(boxes: Boxes, truths: Sequence[TrueMap]) -> tuple[Reals, Reals]:
    """Compares the boxes of each completion with the true map.

    Args:
        boxes: of N completions.
        truths: of the same completions.

    Returns:
        Compactness, the mean over the boxes of the mean of the map inside each, and coverage, the
        share of the map inside at least one, both (N,). Boxes end on whole pixels, truncated and
        cut at the picture's edge; those without a pixel do not count, and 0 is where none counts
        or nothing is marked.
    """
    pixels = np.clip(np.trunc(boxes.corners), 0, SIDE).astype(np.int64)
    full = (pixels[:, 0] < pixels[:, 2]) & (pixels[:, 1] < pixels[:, 3])
    pixels, owner = pixels[full], np.repeat(np.arange(len(truths)), boxes.counts)[full]
    ends = np.searchsorted(owner, np.arange(len(truths) + 1)).tolist()
    groups: dict[int, list[int]] = {}
    for row, truth in enumerate(truths):
        if ends[row] < ends[row + 1] and truth.total > 0:
            groups.setdefault(id(truth), []).append(row)
    compactness, coverage = np.zeros((2, len(truths)))
    for together in groups.values():
        for start in range(0, len(together), _TOGETHER):
            rows = together[start : start + _TOGETHER]
            own = [pixels[ends[row] : ends[row + 1]] for row in rows]
            compactness[rows], coverage[rows] = _inside_one_map(own, truths[rows[0]])
    return compactness, coverage


def with_edge_rules(values: Reals, marked: Flags, boxed: Flags) -> Reals:
    """Applies the rules of all six rewards of boxes where a side has nothing.

    Args:
        values: (N,), used where something is marked and boxed.
        marked: (N,), whether the truth is above 0 anywhere.
        boxed: (N,), whether the completion has boxes.

    Returns:
        (N,): 1 where neither is, 0 where one of them is.
    """
    return np.where(marked & boxed, values, np.where(marked | boxed, 0.0, 1.0))


def _inside_one_map(pixels: Sequence[NDArray[np.int64]], truth: TrueMap) -> tuple[Reals, Reals]:
    """As `inside_boxes`, for one map on which something is marked.

    Args:
        pixels: the ends of each completion's boxes, (K, 4) with K > 0; all have pixels.
        truth: the map.
    """
    counts = [len(own) for own in pixels]
    owner = np.repeat(np.arange(len(pixels)), counts)
    x1, y1, x2, y2 = np.concatenate(pixels).T
    # All boxes end at edges, between which lie cells: few numbers instead of many pixels.
    (ys, top, bottom), (xs, left, right) = _edges(y1, y2), _edges(x1, x2)
    sums = sums_up_to(truth.grid, ys, xs)
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    means = np.bincount(owner, inside / ((y2 - y1) * (x2 - x1)), len(pixels))
    covered = np.zeros((len(pixels), len(ys) - 1, len(xs) - 1), bool)
    for row, *ends in zip(*(x.tolist() for x in (owner, top, bottom, left, right)), strict=True):
        covered[row, ends[0] : ends[1], ends[2] : ends[3]] = True
    cells = sums[1:, 1:] - sums[:-1, 1:] - sums[1:, :-1] + sums[:-1, :-1]
    return means / counts, (covered * cells).sum((1, 2)) / (truth.total + _NOT_ZERO)


def _edges(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Returns the edges at which boxes start or end, and which of them each start and end is."""
    used = np.zeros(SIDE + 1, bool)
    used[starts] = used[ends] = True
    number = used.cumsum() - 1
    return np.flatnonzero(used), number[starts], number[ends]


def _launches(rows: list[int], truth: Tensor) -> list[list[int]]:
    """Splits rows for a CPU's cache; an accelerator takes all at once."""
    most = max(_CACHED // truth.numel(), 1) if truth.device.type == "cpu" else len(rows)
    return [rows[start : start + most] for start in range(0, len(rows), most)]


def _stacked(maps: Sequence[Tensor | None], truth: Tensor) -> Tensor:
    """Returns (B, H, W); None becomes zeros of the truth's shape."""
    filled = [torch.zeros_like(truth) if some is None else some for some in maps]
    return filled[0].unsqueeze(0) if len(filled) == 1 else torch.stack(filled)


def _mean_overlap(boxes: Reals) -> Reals:
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
    means: Reals = (overlap.sum((1, 2)) - itself) / (count * (count - 1))
    return means
