from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import entropy, mannwhitneyu, pearsonr
from scipy.stats import zscore as z_scores

from tts_verifier.errors import InputError
from tts_verifier.evaluation import EMPTY_MEASURES, MEASURES, auc_judd, heatmap_metrics, resized

TRUTH = np.array([[0.0, 1.0], [0.0, 0.5]])
PREDICTED = np.array([[0.1, 0.4], [0.3, 0.2]])


def one(predicted, truth):
    return {name: values[0] for name, values in heatmap_metrics(predicted, truth).items()}


def test_every_measure_by_hand() -> None:
    found = one(PREDICTED, TRUTH)
    # Squared differences 0.01, 0.36, 0.09, 0.09.
    assert found["mse"] == pytest.approx(0.55 / 4)
    # Deviations (-.15, .15, .05, -.05) and (-.375, .625, -.375, .125):
    # 0.125 / sqrt(0.05 * 0.6875).
    assert found["cc"] == pytest.approx(0.125 / math.sqrt(0.05 * 0.6875), abs=1e-6)
    # Distributions (.1, .4, .3, .2) and (0, 2/3, 0, 1/3).
    assert found["kld"] == pytest.approx(
        2 / 3 * math.log(2 / 3 / 0.4) + 1 / 3 * math.log(1 / 3 / 0.2), abs=1e-6
    )
    assert found["sim"] == pytest.approx(0.4 + 0.2)
    # Marked deviations 0.15 and -0.05 over the unbiased deviation sqrt(0.05 / 3).
    assert found["nss"] == pytest.approx(0.05 / math.sqrt(0.05 / 3))
    # Thresholds 0.4 and 0.2 give (0, 1/2) and (1/2, 1): areas 0, 1/2 * 3/4 and 1/2.
    assert found["auc_judd"] == pytest.approx(0.875)


def test_the_measures_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.random((3, 12, 9))
    truth = np.where(rng.random((3, 12, 9)) > 0.7, rng.random((3, 12, 9)), 0)
    found = heatmap_metrics(predicted, truth)
    assert set(found) == set(MEASURES)
    for i, (p, t) in enumerate(zip(predicted.reshape(3, -1), truth.reshape(3, -1), strict=True)):
        assert found["cc"][i] == pytest.approx(pearsonr(p, t).statistic, abs=1e-6)
        assert found["kld"][i] == pytest.approx(entropy(t, p), abs=1e-4)
        assert found["nss"][i] == pytest.approx(z_scores(p, ddof=1)[t > 0].mean())
        pairs = (t > 0).sum() * (t == 0).sum()
        area = mannwhitneyu(p[t > 0], p[t == 0]).statistic / pairs
        # Judd's curve has points at the marked pixels only, so it cuts corners by half a step.
        below = (p[t == 0] >= p[t > 0].min()).mean()
        assert found["auc_judd"][i] == pytest.approx(area + below / 2 / (t > 0).sum())


def test_a_perfect_map_has_the_best_values() -> None:
    found = one(TRUTH, TRUTH)
    assert found["mse"] == 0
    assert found["cc"] == pytest.approx(1, abs=1e-6)
    assert found["kld"] == pytest.approx(0, abs=1e-6)
    assert found["sim"] == pytest.approx(1)
    # Thresholds 1 and 0.5 are above all that is not marked.
    assert found["auc_judd"] == 1


def test_a_truth_without_marks_has_only_an_mse() -> None:
    found = one(PREDICTED, np.zeros((2, 2)))
    assert found["mse"] == pytest.approx(0.3 / 4)
    assert [name for name in MEASURES if not math.isnan(found[name])] == list(EMPTY_MEASURES)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_constant_map_earns_nothing(level: float) -> None:
    found = one(np.full((2, 2), level), TRUTH)
    assert (found["nss"], found["auc_judd"]) == (0, 0.5)
    assert found["cc"] == pytest.approx(0, abs=1e-6)
    if level:
        assert found["sim"] == pytest.approx(0.5)
    else:
        assert found["sim"] == 0
        assert found["kld"] > 10


def test_a_truth_marked_everywhere_has_no_auc() -> None:
    found = one(PREDICTED, np.ones((2, 2)))
    assert math.isnan(found["auc_judd"])
    assert found["nss"] == pytest.approx(0, abs=1e-12)


def test_ties_count_half() -> None:
    assert auc_judd([1, 0, 0, 0], [True, True, False, False]) == 0.75
    assert auc_judd([0.5, 0.5], [True, False]) == 0.5


def test_one_map_in_a_batch_is_as_alone() -> None:
    rng = np.random.default_rng(1)
    predicted, truth = rng.random((4, 6, 6)), (rng.random((4, 6, 6)) > 0.6).astype(float)
    truth[2] = 0
    together = heatmap_metrics(predicted, truth)
    for i in range(4):
        alone = one(predicted[i], truth[i])
        np.testing.assert_allclose([together[n][i] for n in MEASURES], list(alone.values()))


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3)), "must have one shape, got"),
        (np.full((2, 2), np.nan), TRUTH, r"predicted maps must stay in \[0, 1\], without NaN"),
        (TRUTH, TRUTH * 255, r"true maps must stay in \[0, 1\].*Divide bytes by 255"),
        (np.zeros(4), TRUTH, r"must have the shape \(H, W\) or \(N, H, W\), got \(4,\)"),
        (np.zeros((0, 2, 2)), np.zeros((0, 2, 2)), "must have the shape"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused(predicted, truth, message) -> None:
    with pytest.raises(InputError, match=message):
        heatmap_metrics(predicted, truth)


def test_a_map_of_bytes_is_resized_and_divided() -> None:
    grid = np.zeros((8, 8), np.uint8)
    grid[:, 4:] = 255
    small = resized(grid, 4)
    assert (small.shape, small.dtype) == ((4, 4), np.float32)
    assert small[0, 0] == 0
    assert small[0, -1] == 1
    np.testing.assert_array_equal(resized(grid, 8), grid / 255)
