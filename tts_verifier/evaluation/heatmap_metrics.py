"""Agreement of heatmaps with the places that people marked, by the published conventions.

The formulas are those of Bylinskii et al. (2018, "What do different evaluation metrics tell us
about saliency models?"), with the details of RAHF, the public reproduction of RichHF:

- Both maps are compared at one resolution, `RESOLUTION` pixels a side as in RAHF. Figures at
  different resolutions cannot be compared, so state it.
- MSE is defined for every map. The others need marks: a truth without any has only an MSE, and
  papers report it apart ("GT = 0").
- The fixated pixels of NSS and AUC-Judd are those where the truth is above 0.
- CC, NSS and SIM of a constant map are 0, its AUC is 0.5. A map of zeros has no distribution, so
  its KLD is that of a prediction that gives every mark a probability of 0.
- Ties: RAHF breaks them by a random jitter. Here pixels of equal value count as one threshold, and
  the straight line to the next point of the curve counts half of them. That is what jitter gives
  on average, without the chance.
- NaN and values outside [0, 1] are errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from tts_verifier.errors import InputError

RESOLUTION: Final = 384
"""Pixels along a side at which RAHF compares maps."""
MEASURES: Final = ("mse", "cc", "kld", "sim", "nss", "auc_judd")
"""The names of the measures, in the order of the published table."""
EMPTY_MEASURES: Final = ("mse",)
"""The measures that are defined for a truth without marks."""

Maps = NDArray[np.float64]
_TINY: Final = 1e-8
"""Keeps quotients and logarithms defined, as in RAHF."""


def heatmap_metrics(predicted: ArrayLike, truth: ArrayLike) -> Mapping[str, Maps]:
    """Compares predicted maps with true ones of the same resolution.

    Args:
        predicted: (H, W) or (N, H, W) in [0, 1].
        truth: the same shape, in [0, 1]; above 0 = marked.

    Returns:
        Each of `MEASURES` as float64 (N,); all but `EMPTY_MEASURES` are NaN where nothing is
        marked, and AUC-Judd also where everything is. MSE and KLD: lower is better; the others:
        higher.

    Raises:
        InputError: the shapes differ, or a value is NaN or outside [0, 1].
    """
    p, t = (_as_maps(value, name) for value, name in ((predicted, "predicted"), (truth, "true")))
    if p.shape != t.shape:
        raise InputError(
            "Maps are compared pixel by pixel and must have one shape, got "
            f"{p.shape} and {t.shape}. Resize one of them with `resized`."
        )
    marked = t > 0
    found = {
        "mse": ((p - t) ** 2).mean(1),
        "cc": _pearson(p, t),
        "kld": _kl_divergence(p, t),
        "sim": np.minimum(_sum_normalised(p), _sum_normalised(t)).sum(1),
        "nss": _normalised_scanpath_saliency(p, marked),
        "auc_judd": np.array([auc_judd(*pair) for pair in zip(p, marked, strict=True)]),
    }
    empty = ~marked.any(1)
    return {
        name: values if name in EMPTY_MEASURES else np.where(empty, np.nan, values)
        for name, values in found.items()
    }


def auc_judd(predicted: ArrayLike, fixated: ArrayLike) -> float:
    """Returns the area under Judd's ROC curve of one map.

    Its thresholds are the predicted values of the fixated pixels. At each, the rate of true
    positives is the share of the fixated pixels that reach it, and the rate of false positives is
    the share of the others that do. Straight lines join the points, from (0, 0) to (1, 1).

    Args:
        predicted: any shape, finite.
        fixated: the same shape, bool.

    Returns:
        A number in [0, 1], 0.5 = chance; NaN unless some pixels are fixated and some are not.
    """
    values, positive = np.asarray(predicted).ravel(), np.asarray(fixated, bool).ravel()
    hits, others = np.sort(values[positive]), np.sort(values[~positive])
    if not len(hits) or not len(others):
        return float("nan")
    thresholds = np.unique(hits)[::-1]
    true_rate = 1 - np.searchsorted(hits, thresholds) / len(hits)
    false_rate = 1 - np.searchsorted(others, thresholds) / len(others)
    x, y = ([0.0, *rates, 1.0] for rates in (false_rate, true_rate))
    return float(np.trapezoid(y, x))


def resized(grid: NDArray[np.uint8], side: int = RESOLUTION) -> NDArray[np.float32]:
    """Resizes a map of bytes to side x side and divides it by 255, as RAHF does.

    The bytes are resized, bilinear, and rounded before the division, which decides where a
    smooth rim counts as marked.
    """
    small = Image.fromarray(grid).resize((side, side), Image.Resampling.BILINEAR)
    values: NDArray[np.float32] = np.asarray(small, np.float32) / np.float32(255)
    return values


def _as_maps(value: ArrayLike, name: str) -> Maps:
    maps = np.asarray(value, np.float64)
    if maps.ndim not in (2, 3) or not maps.size:
        raise InputError(
            f"The {name} maps must have the shape (H, W) or (N, H, W), got {maps.shape}."
        )
    low, high = float(maps.min()), float(maps.max())
    # Written so that NaN, with which every comparison is false, is refused too.
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"The {name} maps must stay in [0, 1], without NaN; got [{low:g}, {high:g}]. "
            "Divide bytes by 255."
        )
    return maps.reshape(-1, maps.shape[-2] * maps.shape[-1])


def _pearson(p: Maps, t: Maps) -> Maps:
    p, t = (x - x.mean(1, keepdims=True) for x in (p, t))
    norm = np.sqrt((p * p).sum(1) * (t * t).sum(1))
    values: Maps = (p * t).sum(1) / (norm + _TINY)
    return values


def _sum_normalised(maps: Maps) -> Maps:
    total = maps.sum(1, keepdims=True)
    shares: Maps = np.divide(maps, total, out=np.zeros_like(maps), where=total > 0)
    return shares


def _kl_divergence(p: Maps, t: Maps) -> Maps:
    p, t = _sum_normalised(p), _sum_normalised(t)
    values: Maps = (t * np.log(t / (p + _TINY) + _TINY)).sum(1)
    return values


def _normalised_scanpath_saliency(p: Maps, marked: NDArray[np.bool_]) -> Maps:
    offset = p - p.mean(1, keepdims=True)
    deviation = p.std(1, ddof=1) if p.shape[1] > 1 else np.zeros(len(p))
    total = (offset * marked).sum(1)
    # A constant map is told by its range: rounding may leave it a deviation above 0.
    defined = (np.ptp(p, axis=1) > 0) & marked.any(1)
    weight = deviation * marked.sum(1)
    values: Maps = np.divide(total, weight, out=np.zeros_like(total), where=defined)
    return values
