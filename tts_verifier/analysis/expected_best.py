"""Exact expectations over all subsets of a prompt's draws, and means over prompts.

The draws of a prompt are exchangeable, so the best of n is the best of n among its N without
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
    high: float


@lru_cache(maxsize=4096)
def misses(total: int, hits: int) -> Array:
    """Returns for n = 0 … total the chance that n of `total` draws hold none of `hits`."""
    i = np.arange(total)
    chance = np.concatenate([[1.0], np.cumprod(np.maximum(total - hits - i, 0) / (total - i))])
    # The cache hands out the same array again.
    chance.flags.writeable = False
    return chance


def expected_best(objective: Array, values: Array) -> Array:
    """Returns for n = 1 … N the expected value of the draw with the best objective.

    Args:
        objective: (N,), NaN for a draw that cannot be chosen.
        values: (N,), of the draw that is chosen; draws of equal objective share the choice.

    Returns:
        (N,). A subset that has nothing to choose adds 0; `misses` gives its chance.
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
    """Returns (draws, value) expected of drawing until one reaches `threshold`.

    The draws come in random order without replacement, at most `limit` of them; then the best
    is taken. As in `expected_best`, nothing to choose adds 0 to the value.
    """
    hits = objective >= threshold
    none = misses(len(objective), int(hits.sum()))
    value = (1 - none[limit]) * values[hits].mean() if hits.any() else 0.0
    rest = int((~hits).sum())
    if rest >= limit:
        value += none[limit] * expected_best(objective[~hits], values[~hits])[limit - 1]
    return np.array([none[:limit].sum(), value])


def estimate(table: Array) -> list[Estimate]:
    """Returns an estimate for every column of a (prompts, n) table."""
    if not len(table):
        return [Estimate(math.nan, math.nan, math.nan)] * table.shape[1]
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), _RESAMPLES)
    low, high = np.percentile(counts @ table / len(table), [2.5, 97.5], axis=0)
    mean = table.mean(axis=0)
    return [Estimate(*map(float, row)) for row in zip(mean, low, high, strict=True)]
