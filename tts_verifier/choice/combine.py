"""Combines several scores of each image into one number: by sum, worst score, rank or priority.

Mean ranks are those of Spearman's correlation: images of equal scores share the mean of their
ranks. Ensembles of verifiers by mean rank: Ma et al., arXiv 2501.09732.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Combination = Literal["sum", "worst", "mean_rank", "lexicographic"]
COMBINATIONS: Final = ("sum", "worst", "mean_rank", "lexicographic")
RELATIVE: Final = ("mean_rank", "lexicographic")
"""Combinations whose number depends on the other images."""

_Table = NDArray[np.float64]


def combine(table: _Table, weights: _Table, how: Combination, *, step: float = 0.0) -> _Table:
    """Returns a number for each image; higher is better.

    Args:
        table: (images, scores), NaN where an image has no such score. Such a score is left out,
            and the weights of the others count for more. `Objective` decides before whether an
            image that lacks a score is usable at all.
        weights: (scores,), not zero; a score of negative weight is better when it is lower.
        how: `sum`, the weighted sum; `worst`, the smallest product of weight and score;
            `mean_rank`, the weighted mean of the ranks by each score, 0 = last, 1 = first;
            `lexicographic`, the rank by the first score, where that is equal by the second, and
            so on; a missing score comes after all others.
        step: for `lexicographic`: scores are equal that round to the same multiple of it.

    Returns:
        (images,), NaN for an image without any score.
    """
    usable = np.isfinite(table)
    none = ~usable.any(axis=1)
    # NumPy warns about images without any score, which get NaN below.
    products = np.where(usable, table, 0.0) * weights
    present = np.where(none, 1.0, (usable * np.abs(weights)).sum(axis=1))
    if how == "sum":
        # The quotient is exactly 1 where no score is missing.
        numbers = products.sum(axis=1) * (np.abs(weights).sum() / present)
    elif how == "worst":
        numbers = np.where(usable, products, math.inf).min(axis=1)
    elif how == "mean_rank":
        ranks = np.column_stack([_ranks(column) for column in (table * np.sign(weights)).T])
        numbers = np.where(usable, ranks * np.abs(weights), 0.0).sum(axis=1) / present
    else:
        columns = np.round(table / step) if step else table
        keys = np.where(usable, columns * np.sign(weights), -math.inf)
        _, places = np.unique(keys, axis=0, return_inverse=True)
        numbers = _ranks(np.where(none, math.nan, places.reshape(-1).astype(np.float64)))
    return np.where(none, math.nan, numbers)


def _ranks(column: _Table) -> _Table:
    """Returns ranks from 0 for the lowest to 1 for the highest; NaN stays NaN, one alone has 1."""
    usable = np.isfinite(column)
    values, ranks = column[usable], np.full(len(column), math.nan)
    if len(values) == 1:
        ranks[usable] = 1.0
    elif len(values):
        below = (values[None, :] < values[:, None]).sum(axis=1)
        equal = (values[None, :] == values[:, None]).sum(axis=1)
        ranks[usable] = (below + (equal - 1) / 2) / (len(values) - 1)
    return ranks
