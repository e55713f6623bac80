"""Exact expectations over all subsets of a prompt's draws, and means over prompts.

The draws of a prompt are exchangeable, so the best of n is the best of n of its N draws without
replacement. A value v_g shared by m draws, with a better ones, is the best of n with
probability [C(N - a, n) - C(N - a - m, n)] / C(N, n): the figures are exact expectations
over all subsets, not a simulation. Intervals are 95 % percentile bootstraps over prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts with its 95 % interval; NaN without a prompt."""

    mean: float
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


@lru_cache(maxsize=4096)
def misses(total: int, hits: int) -> Array:
    """Returns for n = 0 … total the chance that n of `total` draws contain none of `hits`."""
    # A running product of ratios stays exact where binomials would overflow.
    i = np.arange(total)
    chance = np.concatenate([[1.0], np.cumprod(np.maximum(total - hits - i, 0) / (total - i))])
    # Callers share the cached array, so none may write into it.
    chance.flags.writeable = False
    return chance


def expected_best(objective: Array, values: Array) -> Array:
    """Returns for n = 1 … N the expected value of the draw with the best objective.

    Args:
        objective: (N,), NaN for a draw that cannot be chosen.
        values: (N,), what is averaged; draws with equal objectives share the choice.

    Returns:
        (N,). A subset without a usable draw adds 0; `misses` gives its chance.
    """
    total, better = len(objective), 0
    expected = np.zeros(total)
    for goal in np.unique(objective[~np.isnan(objective)])[::-1]:
        group = objective == goal
        size = int(group.sum())
        chance = misses(total, better) - misses(total, better + size)
        expected += chance[1:] * values[group].mean()
        better += size
    return expected


def expected_stop(objective: Array, values: Array, threshold: float, limit: int) -> Array:
    """Returns the expected number of draws, and the value, of drawing until one is good enough.

    The draws come in random order without replacement. If none of the first `limit` reaches the
    threshold, the best of them is chosen. As in `expected_best`, nothing to choose adds 0.

    Args:
        objective: (N,), NaN for a draw that cannot be chosen.
        values: (N,), what is averaged.
        threshold: the objective that ends the search.
        limit: the largest number of draws.

    Returns:
        (2,): expected draws, expected value.
    """
    hits = objective >= threshold
    none = misses(len(objective), int(hits.sum()))
    value = (1 - none[limit]) * values[hits].mean() if hits.any() else 0.0
    rest = int((~hits).sum())
    if rest >= limit:
        value += none[limit] * expected_best(objective[~hits], values[~hits])[limit - 1]
    return np.array([none[:limit].sum(), value])


def estimate(table: Array) -> list[Estimate]:
    """Returns the mean and its interval for every column of a table.

    The intervals are 95 % percentile bootstraps over the rows.

    Args:
        table: (prompts, n).
    """
    if not len(table):
        return [Estimate(math.nan, math.nan, math.nan)] * table.shape[1]
    rng = np.random.default_rng(0)
    # How often each row is drawn: one matrix product replaces 2000 resampled tables.
    counts = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), _RESAMPLES)
    low, high = np.percentile(counts @ table / len(table), [2.5, 97.5], axis=0)
    mean = table.mean(axis=0)
    return [Estimate(*map(float, row)) for row in zip(mean, low, high, strict=True)]
