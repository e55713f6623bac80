"""Exact expectations over all subsets of a prompt's draws, and means over prompts.

The draws of a prompt are exchangeable, so the best of n is the best of n of its N draws without
replacement. A value v_g shared by m draws, with a better ones, is the best of n with
probability [C(N - a, n) - C(N - a - m, n)] / C(N, n): the figures are exact expectations
over all subsets, not a simulation. Intervals are 95 % percentile bootstraps over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Places = NDArray[np.int64]

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
        objective: (N,) or (prompts, N), NaN for a draw that cannot be chosen.
        values: of the same shape, what is averaged; draws with equal objectives share the choice.

    Returns:
        Of the same shape. A subset without a usable draw adds 0; `misses` gives its chance.
    """
    goals, table = np.atleast_2d(objective), np.atleast_2d(values)
    total, expected = goals.shape[1], np.zeros(goals.shape)
    prompt, better, size, mean = _groups(goals, table)
    # Best groups first: the sums are the same whichever prompts are computed together.
    ranks = np.arange(len(prompt)) - np.searchsorted(prompt, prompt)
    for rank in range(int(ranks.max(initial=-1)) + 1):
        now = np.flatnonzero(ranks == rank)
        chance = _misses_each(total, better[now]) - _misses_each(total, better[now] + size[now])
        expected[prompt[now]] += chance[:, 1:] * mean[now, None]
    return expected.reshape(np.shape(objective))


def _groups(goals: Array, values: Array) -> tuple[Places, Places, Places, Array]:
    """Returns the groups of draws of equal objective of each prompt, best first.

    Returns:
        Of each group: the prompt, how many draws are better, its size, and its mean value.
    """
    order = np.argsort(-goals, axis=1, kind="stable")
    ranked, values = np.take_along_axis(goals, order, 1), np.take_along_axis(values, order, 1)
    begins = ~np.isnan(ranked)
    begins[:, 1:] &= ranked[:, 1:] != ranked[:, :-1]
    prompt, better = np.nonzero(begins)
    # A group ends where the next one of the prompt begins, or with the last usable draw.
    ends = (~np.isnan(goals)).sum(axis=1)[prompt]
    same = prompt[1:] == prompt[:-1]
    ends[:-1][same] = better[1:][same]
    size, mean = ends - better, np.empty(len(prompt))
    for width in np.unique(size):
        some = np.flatnonzero(size == width)
        mean[some] = values[prompt[some, None], better[some, None] + np.arange(width)].mean(axis=1)
    return prompt, better, size, mean


def _misses_each(total: int, hits: Places) -> Array:
    """Returns the row of `misses` of each number of hits: (len(hits), total + 1)."""
    different, places = np.unique(hits, return_inverse=True)
    return np.array([misses(total, int(one)) for one in different])[places]


def expected_stop(objective: Array, values: Array, threshold: float, limit: int) -> Array:
    """Returns the expected number of draws, and the value, of drawing until one is good enough.

    The draws come in random order without replacement. If none of the first `limit` reaches the
    threshold, the best of them is chosen. As in `expected_best`, nothing to choose adds 0.

    Args:
        objective: (N,) or (prompts, N), NaN for a draw that cannot be chosen.
        values: of the same shape, what is averaged.
        threshold: the objective that ends the search.
        limit: the largest number of draws.

    Returns:
        (2,) or (prompts, 2): expected draws, expected value.
    """
    goals, table = np.atleast_2d(objective), np.atleast_2d(values)
    hits = goals >= threshold
    found, total = hits.sum(axis=1), goals.shape[1]
    stops = np.empty((len(goals), 2))
    for count in np.unique(found):
        some = np.flatnonzero(found == count)
        none, rest = misses(total, int(count)), total - int(count)
        value = np.zeros(len(some))
        if count:
            good = table[some][hits[some]].reshape(len(some), count)
            value = (1 - none[limit]) * good.mean(axis=1)
        if rest >= limit:
            others = [part[some][~hits[some]].reshape(len(some), rest) for part in (goals, table)]
            value += none[limit] * expected_best(*others)[:, limit - 1]
        stops[some] = np.column_stack([np.full(len(some), none[:limit].sum()), value])
    return stops.reshape(*np.shape(objective)[:-1], 2)


def by_prompt(
    function: Callable[[Array, Array], Array],
    objective: Sequence[Array],
    values: Sequence[Array],
) -> Array:
    """Applies a function of two tables (prompts, N) to prompts with different numbers of draws.

    Args:
        function: returns one row per prompt; all its rows have the same shape.
        objective: of each prompt, (N,).
        values: of each prompt, (N,).

    Returns:
        (prompts, …), in the order of the prompts.
    """
    lengths = np.array([len(row) for row in objective])
    rows: list[Array] = [np.empty(0)] * len(lengths)
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length).tolist()
        done = function(
            np.array([objective[i] for i in places]), np.array([values[i] for i in places])
        )
        for i, row in zip(places, done, strict=True):
            rows[i] = row
    return np.array(rows)


def estimate(table: Array) -> list[Estimate]:
    """Returns the mean and its interval for every column of a table.

    The intervals are 95 % percentile bootstraps over the rows.

    Args:
        table: (prompts, n).
    """
    if not len(table):
        return [Estimate(math.nan, math.nan, math.nan)] * table.shape[1]
    # One matrix product replaces 2000 resampled tables.
    counts = _resamples(len(table))
    low, high = np.percentile(counts @ table / len(table), [2.5, 97.5], axis=0)
    mean = table.mean(axis=0)
    return [Estimate(*map(float, row)) for row in zip(mean, low, high, strict=True)]


# All measures of a log have the same prompts. Four tables: some prompts may lack a measure.
@lru_cache(maxsize=4)
def _resamples(count: int) -> Array:
    """Returns how often each of `count` rows is drawn in every resample: (2000, count)."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(count, np.full(count, 1 / count), _RESAMPLES).astype(np.float64)
    counts.flags.writeable = False
    return counts
