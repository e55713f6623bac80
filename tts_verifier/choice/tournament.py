"""A tournament: which of the best images to compare in pairs, and the order that follows.

Every image is compared with every other one. Its result is the mean of its preferences; equal
results keep the order of the objectives. With preferences of 0 and 1 this is Copeland's method
(1951). Unlike a knock-out, it does not depend on the order of the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from statistics import fmean
from typing import Final, TypeVar

from tts_verifier.errors import InputError
from tts_verifier.types import Compare, Look, Trial

T = TypeVar("T")

_FLOAT_ERROR: Final = 1e-6
"""By which a preference may be out of range: a sum of float32 is not exact."""


def near_ties(order: Sequence[Trial], count: int, *, near: float = 0.0) -> list[tuple[str, str]]:
    """Returns the pairs of images to compare, by trial id; none if the best is alone.

    Args:
        order: of `Choice`: the trials that may be chosen, best first.
        count: the most images.
        near: how far below the best objective an image may be. Images that were verified in
            another detail than the best are left out: their objectives are on another scale.

    Returns:
        Pairs of the trials that made the images, ordered so that wherever a budget ends, the first
        images have been compared completely.
    """
    top: list[str] = []
    for trial in order[:count]:
        alike = isinstance(trial.proposal, Look) == isinstance(order[0].proposal, Look)
        # Sums of floats are not exact: 0.9 is within 0.1 of 1.
        if not alike or not trial.objective >= order[0].objective - near - 1e-9:
            break
        top.append(_image_of(trial))
    return [(one, other) for place, other in enumerate(top) for one in top[:place]]


def by_comparisons(ranked: Sequence[Trial], history: Sequence[Trial]) -> list[Trial]:
    """Returns images in the order of the comparisons of those at the top.

    The top is the longest run of images, from the best on, that were all compared with each other.
    A comparison that failed is a tie.

    Args:
        ranked: the trials that made the images, best first.
        history: the trials of the prompt, comparisons among them.
    """
    won: dict[tuple[str, str], float] = {}
    for trial in history:
        if isinstance(pair := trial.proposal, Compare):
            preferred = 0.5 if math.isnan(trial.objective) else trial.objective
            won[pair.parent, pair.rival] = preferred
            won[pair.rival, pair.parent] = 1 - preferred
    count = min(len(ranked), 1)
    while count < len(ranked) and all((t.id, ranked[count].id) in won for t in ranked[:count]):
        count += 1
    if count < 2:
        return list(ranked)
    places = standings([t.id for t in ranked[:count]], won)
    return [*(ranked[i] for i in places), *ranked[count:]]


def standings(names: Sequence[T], won: Mapping[tuple[T, T], float]) -> list[int]:
    """Returns the places of images from best to worst by the mean of their preferences.

    Args:
        names: of at least two images, best first by their objectives.
        won: (image, rival) -> how strongly the image is preferred to the rival, for all pairs.
    """
    results = [fmean(won[one, rival] for rival in names if rival != one) for one in names]
    # Rounded, because sums in another order may differ in the last digit.
    return sorted(range(len(names)), key=lambda i: -round(results[i], 9))


def both_orders(there: float, back: float) -> float:
    """Returns the preference for the first of two images, asked in both orders.

    Args:
        there: how strongly the first one is preferred, in [0, 1] except for rounding.
        back: how strongly the second one is preferred when the two change places, in [0, 1].

    Returns:
        In [0, 1]; NaN if one of the two is not usable.
    """
    usable = all(
        isinstance(one, Real) and -_FLOAT_ERROR <= one <= 1 + _FLOAT_ERROR for one in (there, back)
    )
    return min(max((there + 1 - back) / 2, 0.0), 1.0) if usable else math.nan


def check_near_ties(ties: int, near: float) -> None:
    """Raises InputError unless `ties` is a number of images and `near` a distance of objectives."""
    # bool is a subclass of int.
    if isinstance(ties, bool) or not isinstance(ties, int) or ties < 0 or ties == 1:
        raise InputError(
            f"ties must be a number of images, 0 or at least 2, got {ties!r}.", argument="ties"
        )
    finite = isinstance(near, (int, float)) and not isinstance(near, bool)
    if not finite or not 0 <= near < math.inf:
        raise InputError(
            f"near must be a finite number, not negative, got {near!r}.", argument="near"
        )


def _image_of(trial: Trial) -> str:
    """Returns the id of the trial that made the image: a look has its parent's."""
    return trial.proposal.parent if isinstance(trial.proposal, Look) else trial.id
