from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from tts_verifier.errors import InputError
from tts_verifier.evaluation import auc, box_iou, plcc, srcc


def test_plcc_is_pearsons_and_srcc_spearmans() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=200)
    # Rounded, so that there are ties on one side, and many on the other.
    target = np.round(predicted + rng.normal(size=200), 1)
    predicted = np.round(predicted)
    assert plcc(predicted, target) == pytest.approx(
        pearsonr(predicted, target).statistic, abs=1e-12
    )
    assert srcc(predicted, target) == pytest.approx(
        spearmanr(predicted, target).statistic, abs=1e-12
    )


def test_plcc_and_srcc_by_hand() -> None:
    # Deviations (-1.5, -0.5, 0.5, 1.5) and (-2, 0, 2, 0): 4 / sqrt(5 * 8).
    assert plcc([1, 2, 3, 4], [0, 2, 4, 2]) == pytest.approx(4 / math.sqrt(40))
    # Ranks (1, 2, 3, 4) and (1, 2.5, 4, 2.5): deviations give 3 / sqrt(5 * 4.5).
    assert srcc([1, 2, 3, 4], [0, 2, 4, 2]) == pytest.approx(3 / math.sqrt(22.5))
    assert plcc([1, 2, 3], [-2, -4, -6]) == pytest.approx(-1.0)
    assert srcc([1, 2, 30], [5, 6, 7]) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", [plcc, srcc])
@pytest.mark.parametrize(
    ("predicted", "target"),
    [
        ([], []),
        ([1.0, 2.0], [1.0, 2.0]),
        ([1.0, 1.0, 1.0], [1, 2, 3]),
        ([1, 2, 3], [0, 0, 0]),
        ([1, math.nan, 3], [1, 2, 3]),
        ([1, 2, 3], [1, 2, math.inf]),
    ],
)
def test_a_correlation_that_is_not_defined_is_nan(metric, predicted, target) -> None:
    assert math.isnan(metric(predicted, target))


@pytest.mark.parametrize("metric", [plcc, srcc])
def test_a_correlation_needs_pairs(metric) -> None:
    with pytest.raises(InputError, match=r"two lists of one length, got the shapes \(3,\) and"):
        metric([1, 2, 3], [1, 2])


def test_auc_counts_ties_half_and_needs_both_kinds() -> None:
    assert auc([0.9, 0.5, 0.5], [True, True, False]) == 0.75
    assert auc([0.1, 0.9], [True, False]) == 0.0
    assert math.isnan(auc([0.9], [True]))
    assert math.isnan(auc([], []))


def test_box_iou_is_intersection_over_union() -> None:
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1.0
    assert box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0
    assert box_iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0.0
    assert box_iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0.0
