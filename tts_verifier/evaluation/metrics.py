"""Agreement of numbers, decisions and boxes: PLCC, SRCC, AUC, box IoU.

All are plain functions of their arguments and may be called from any thread. A figure that the
data do not define is NaN, never an exception.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tts_verifier.errors import InputError
from tts_verifier.types import Box

Vector = NDArray[np.float64]


def plcc(predicted: ArrayLike, target: ArrayLike) -> float:
    """Returns Pearson's linear correlation coefficient of two samples.

    r = sum((p - mean(p)) * (t - mean(t))) / sqrt(sum((p - mean(p))^2) * sum((t - mean(t))^2))

    Args:
        predicted: (N,) numbers; the caller drops or replaces missing ones.
        target: (N,) numbers, paired with `predicted`.

    Returns:
        r in [-1, 1]; NaN with fewer than three pairs, when either side is constant, or when a
        number is not finite.

    Raises:
        InputError: the two are not one-dimensional and of one length.
    """
    p, t = _pairs(predicted, target)
    # Two pairs always lie on a line, so their correlation is 1 or -1 and says nothing.
    if len(p) < 3 or np.ptp(p) == 0 or np.ptp(t) == 0:
        return math.nan
    if not (np.isfinite(p).all() and np.isfinite(t).all()):
        return math.nan
    return float(np.corrcoef(p, t)[0, 1])


def srcc(predicted: ArrayLike, target: ArrayLike) -> float:
    """Returns Spearman's rank correlation coefficient: the PLCC of the ranks.

    Equal numbers share the mean of their ranks. Arguments, undefined cases and errors are those
    of `plcc`.
    """
    p, t = _pairs(predicted, target)
    if not (np.isfinite(p).all() and np.isfinite(t).all()):
        return math.nan
    return plcc(_mean_ranks(p), _mean_ranks(t))


def _pairs(predicted: ArrayLike, target: ArrayLike) -> tuple[Vector, Vector]:
    p, t = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    if p.ndim != 1 or p.shape != t.shape:
        raise InputError(
            f"A correlation needs two lists of one length, got the shapes {p.shape} and {t.shape}."
        )
    return p, t


def _mean_ranks(values: Vector) -> Vector:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    # The last rank of each distinct value, less half of its ties.
    ranks: Vector = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Returns the area under the ROC curve: how often a positive outranks a negative.

    AUC = P(s+ > s-) + P(s+ = s-) / 2 over all pairs of a positive and a negative item, which
    is the Mann-Whitney U statistic over the number of pairs. A tie counts one half.

    Args:
        scores: (N,) numbers, higher = more likely positive.
        positive: (N,) whether each item is positive.

    Returns:
        A number in [0, 1], 0.5 = chance; NaN unless there are items of both kinds.
    """
    pairs = list(zip(scores, positive, strict=True))
    above: NDArray[np.float64] = np.array([s for s, is_positive in pairs if is_positive])
    below: NDArray[np.float64] = np.array([s for s, is_positive in pairs if not is_positive])
    if not len(above) or not len(below):
        return math.nan
    # Every pair, N^2 numbers: sets are small, and ties need no ranks of their own.
    gaps = np.subtract.outer(above, below)
    return float((gaps > 0).mean() + 0.5 * (gaps == 0).mean())


def box_iou(a: Box, b: Box) -> float:
    """Returns the intersection over union of two boxes.

    IoU = |a and b| / |a or b|, with boxes as (x1, y1, x2, y2) on one scale, x1 <= x2 and
    y1 <= y2, and areas (x2 - x1) * (y2 - y1).

    Returns:
        A number in [0, 1]; 0 for boxes that only touch, and for empty boxes.
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    # Also when both boxes are empty: their union is 0 too, and the quotient undefined.
    if not intersection:
        return 0.0
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    return intersection / (sum(areas) - intersection)
