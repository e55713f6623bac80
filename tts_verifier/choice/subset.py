"""Chooses k of n images that are good and differ from one another.

The value of a set S is (1 - diversity) times the mean quality of its images plus diversity times
the mean distance of its pairs. An image is added at a time, the one that raises the value most,
and then images are exchanged as long as that raises it. For distances of a metric the first step
alone reaches half of the optimum (Borodin, Lee, Ye, "Max-sum diversification, monotone submodular
functions and dynamic updates", PODS 2012).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.choice.objective import order
from tts_verifier.errors import InputError

Embed = Callable[[Sequence[Image.Image]], Any]
"""Turns n RGB images into n feature vectors, anything that numpy takes as an (n, d) array."""

DIVERSITY: Final = 0.3
"""The default weight of the distances."""
_LAYOUT_SIDE: Final = 8
"""Width and height of the thumbnails that images are compared by, in pixels."""
_LEVELS: Final = 4
"""Levels of each colour channel in a histogram."""
_LEAST_GAIN: Final = 1e-9
"""An exchange must raise the value of a set by more, so that rounding makes no endless loop."""


def choose_subset(
    values: Sequence[float], features: Any, k: int, *, diversity: float = DIVERSITY
) -> list[int]:
    """Returns the indices of the k chosen candidates, the best one first, then by quality.

    The best candidate is always chosen. Quality is the rank among the usable values, from 1 for
    the best to 0 for the worst, equal values sharing theirs: so the scale of an objective does not
    matter. Distances are Euclidean, divided by the largest one.

    Args:
        values: n objective values; a candidate whose value is NaN is not chosen.
        features: finite (n, d) array.
        k: how many; where fewer are usable, all of these are returned.
        diversity: in [0, 1]; 0 = the k best, 1 = the best one and what differs most.

    Raises:
        InputError: an argument is out of range, or the features do not fit the values.
    """
    check_choice(k, diversity)
    array = _as_features(features, len(values))
    usable = [i for i in order(values) if not math.isnan(values[i])]
    if len(usable) <= k:
        return usable
    quality = _rank_shares([values[i] for i in usable])
    distance = _distances(array[usable])
    chosen = _exchanged(
        _added_one_by_one(quality, distance, k, diversity), quality, distance, diversity
    )
    return [usable[i] for i in sorted(chosen)]


def places(ranked: Sequence[tuple[str, float]]) -> list[float]:
    """Returns values for `choose_subset` of candidates that are ranked already.

    A ranking may have diagnoses first and then quick scores, which are two scales.

    Args:
        ranked: (detail, objective) of each candidate, best first.

    Returns:
        A falling number for each; equal for neighbours of equal detail and objective, NaN where
        the objective is.
    """
    values: list[float] = []
    for place, (detail, objective) in enumerate(ranked):
        same = place > 0 and ranked[place - 1] == (detail, objective)
        values.append(values[-1] if same else -float(place))
    pairs = zip(values, ranked, strict=True)
    return [math.nan if math.isnan(objective) else value for value, (_, objective) in pairs]


def layout_and_colour(images: Sequence[Image.Image]) -> NDArray[np.float64]:
    """Returns features of layout and of colour: a thumbnail and a histogram of each image.

    Args:
        images: RGB.

    Returns:
        float64 (n, 256). Pictures that differ in what they show, and not in layout or colour, are
        close; an embedding such as CLIP's or DINO's tells these apart.
    """
    rows = []
    for image in images:
        small = image.convert("RGB").resize((_LAYOUT_SIDE, _LAYOUT_SIDE), Image.Resampling.BOX)
        thumbnail = np.asarray(small, np.float64).ravel() / 255
        pixels = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.NEAREST))
        cells = pixels.reshape(-1, 3) // (256 // _LEVELS) @ (_LEVELS**2, _LEVELS, 1)
        shares = np.bincount(cells, minlength=_LEVELS**3) / len(cells)
        # Roots of shares have distances of at most the root of 2, as Hellinger's; the thumbnail's
        # are divided to be of the same size.
        rows.append(np.concatenate((thumbnail / _LAYOUT_SIDE, np.sqrt(shares))))
    return np.array(rows).reshape(len(rows), 3 * _LAYOUT_SIDE**2 + _LEVELS**3)


def check_choice(k: int, diversity: float, embed: object = layout_and_colour) -> None:
    """Raises InputError for an argument that no set can have, before images are embedded."""
    if not callable(embed):
        raise InputError(
            f"embed must be a function that turns images into features, got {embed!r:.80}.",
            argument="embed",
        )
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k must be a number from 1 up, got {k!r}.", argument="k")
    number = isinstance(diversity, int | float) and not isinstance(diversity, bool)
    if not number or not 0 <= diversity <= 1:
        raise InputError(f"diversity must be in [0, 1], got {diversity!r}.", argument="diversity")


def _as_features(features: Any, count: int) -> NDArray[np.float64]:
    try:
        array = np.asarray(features, np.float64)
    # torch refuses tensors that require gradients by a RuntimeError.
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"Features must be numbers, a row for each image: {error}", argument="embed"
        ) from error
    if array.ndim != 2 or len(array) != count or not np.isfinite(array).all():
        raise InputError(
            f"Features must be finite and of shape ({count}, d), a row for each image, got "
            f"{array.shape}{'' if np.isfinite(array).all() else ' with NaN or infinity'}.",
            argument="embed",
        )
    return array


def _rank_shares(falling: Sequence[float]) -> NDArray[np.float64]:
    """Returns qualities of values that are sorted from best to worst."""
    places: dict[float, list[int]] = {}
    for place, value in enumerate(falling):
        places.setdefault(value, []).append(place)
    means = {value: sum(group) / len(group) for value, group in places.items()}
    return np.array([1 - means[value] / (len(falling) - 1) for value in falling])


def _distances(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns Euclidean distances of all pairs, the largest being 1; 0 if all are equal."""
    from scipy.spatial.distance import cdist

    distances: NDArray[np.float64] = cdist(features, features)
    largest = float(distances.max())
    return distances / largest if largest > 0 else distances


def _gains(
    chosen: Sequence[int],
    quality: NDArray[np.float64],
    distance: NDArray[np.float64],
    k: int,
    diversity: float,
) -> NDArray[np.float64]:
    """Returns what each candidate would add to the value of a set of k that holds `chosen`."""
    pairs = max(k * (k - 1) / 2, 1)
    sums = distance[:, list(chosen)].sum(axis=1)
    gains: NDArray[np.float64] = (1 - diversity) * quality / k + diversity * sums / pairs
    gains[list(chosen)] = -np.inf
    return gains


def _added_one_by_one(
    quality: NDArray[np.float64], distance: NDArray[np.float64], k: int, diversity: float
) -> list[int]:
    # Candidates are sorted, so the first is the best.
    chosen = [0]
    while len(chosen) < k:
        chosen.append(int(np.argmax(_gains(chosen, quality, distance, k, diversity))))
    return chosen


def _exchanged(
    chosen: Sequence[int],
    quality: NDArray[np.float64],
    distance: NDArray[np.float64],
    diversity: float,
) -> list[int]:
    """Exchanges images but the first one until no exchange raises the value of the set."""
    chosen, place, unchanged = list(chosen), 0, 0
    while unchanged < len(chosen) - 1:
        place = place % (len(chosen) - 1) + 1
        others = [i for i in chosen if i != chosen[place]]
        gains = _gains(others, quality, distance, len(chosen), diversity)
        best = int(np.argmax(gains))
        if gains[best] > gains[chosen[place]] + _LEAST_GAIN:
            chosen[place], unchanged = best, 0
        else:
            unchanged += 1
    return chosen
