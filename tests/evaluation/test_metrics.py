from __future__ import annotations

import math

import numpy as np
import pytest

from tts_verifier.evaluation import auc, box_iou, correlation


def test_correlation_is_pearsons() -> None:
    predicted, target = [0.1, 0.4, 0.2, 0.9], [1.0, 3.0, 2.0, 2.5]
    assert correlation(predicted, target) == pytest.approx(np.corrcoef(predicted, target)[0, 1])
    assert correlation(target, [-2 * t for t in target]) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("predicted", "target"),
    [([], []), ([1.0, 2.0], [1.0, 2.0]), ([1.0, 1.0, 1.0], [1, 2, 3]), ([1, 2, 3], [0, 0, 0])],
)
def test_correlation_needs_three_pairs_and_no_constant_side(predicted, target) -> None:
    assert math.isnan(correlation(predicted, target))


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
