"""Simulated raters: what they write is quantised, averaged, and scatters around the truth."""

from __future__ import annotations

import numpy as np
import pytest

from tts_verifier.training.richhf.raters import DISC, RaterPanel


def panel(part_seed: int = 1) -> RaterPanel:
    return RaterPanel(0, part_seed)


def test_scores_are_thirds_of_a_five_point_scale_around_the_truth() -> None:
    raters = panel()
    truths = np.linspace(0, 1, 400)
    rated = np.array([raters.scores({"overall": t})["overall"] for t in truths])
    np.testing.assert_allclose(rated * 12, np.round(rated * 12), atol=1e-9)
    assert rated.min() >= 0
    assert rated.max() <= 1
    # Three opinions of a deviation of 0.6 to 0.7 points: about 0.1 on the scale from 0 to 1.
    assert 0.05 < np.std(rated - truths) < 0.15
    assert np.corrcoef(rated, truths)[0, 1] > 0.9


def test_a_map_has_the_votes_of_three_raters_where_the_flaw_is() -> None:
    raters = panel()
    box = (200.0, 240.0, 300.0, 320.0)
    maps = np.stack([raters.marks([box]) for _ in range(60)])
    assert (maps.shape, maps.dtype) == ((60, 512, 512), np.uint8)
    assert set(np.unique(maps)) == {0, 85, 170, 255}
    inside = maps[:, 240:320, 200:300].mean()
    assert inside > 20 * maps[:, :180].mean()
    assert (maps.max((1, 2)) == 255).mean() > 0.4


def test_a_point_marks_a_disc() -> None:
    raters = RaterPanel(0, 3)
    box = (256.0, 256.0, 257.0, 257.0)
    areas = [(raters.marks([box]) > 0).sum() for _ in range(20)]
    assert np.pi * DISC**2 * 0.98 < np.median(areas) < 3 * np.pi * DISC**2


def test_without_flaws_a_map_is_nearly_always_empty() -> None:
    raters = panel()
    marked = np.mean([raters.marks([]).any() for _ in range(300)])
    assert 0.03 < marked < 0.18


def test_misaligned_words_are_mostly_found() -> None:
    raters = panel()
    votes = np.array([raters.words([True, False, True]) for _ in range(300)])
    assert votes.shape == (300, 3)
    assert votes[:, 1].mean() < 0.1
    assert votes[:, [0, 2]].mean() > 0.97
    assert raters.words([]) == ()


@pytest.mark.parametrize("seed", [0, 5])
def test_a_panel_repeats_itself_by_its_seed(seed: int) -> None:
    first, second = panel(seed), panel(seed)
    assert first.scores({"a": 0.4}) == second.scores({"a": 0.4})
    np.testing.assert_array_equal(
        first.marks([(0.0, 0.0, 99.0, 99.0)]), second.marks([(0.0, 0.0, 99.0, 99.0)])
    )
