"""Heatmaps and boxes become the mask to repaint."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tts_verifier.errors import InputError
from tts_verifier.strategies.common.masks import MaskRule, flaw_mask, spots
from tts_verifier.types import Mask

SIZE = (80, 64)


def heatmap(*places: tuple[int, int], amplitude: float = 0.2) -> np.ndarray:
    """Returns a (64, 80) heatmap with hot squares of 8 pixels at (x, y)."""
    heat = np.full((64, 80), 0.01, np.float32)
    for x, y in places:
        heat[y : y + 8, x : x + 8] = amplitude
    return heat


def rectangle(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros((64, 80), np.bool_)
    mask[y1:y2, x1:x2] = True
    return mask


@pytest.mark.parametrize(
    "rule",
    [MaskRule(dilate=0), MaskRule("quantile", 0.95, dilate=0), MaskRule("otsu", dilate=0)],
    ids=lambda rule: rule.threshold,
)
def test_a_faint_spot_is_the_mask(rule: MaskRule) -> None:
    mask = flaw_mask([heatmap((24, 24))], (), size=SIZE, rule=rule)
    assert mask == Mask.of(rectangle(24, 24, 32, 32))


def test_the_spots_of_all_heatmaps_are_united_and_grown() -> None:
    heatmaps = [heatmap((0, 0), amplitude=0.9), heatmap((72, 56), amplitude=0.1)]
    mask = flaw_mask(heatmaps, (), size=SIZE)
    # 0.08 of 64 pixels are 5 on each side.
    assert mask == Mask.of(rectangle(0, 0, 13, 13) | rectangle(67, 51, 80, 64))


def test_the_spot_with_the_most_heat_comes_first() -> None:
    heat = heatmap((0, 0), amplitude=0.2) + heatmap((40, 40), amplitude=0.3)
    mask = Mask.of(heat > 0.1)
    assert spots(mask, [heat]) == [
        Mask.of(rectangle(40, 40, 48, 48)),
        Mask.of(rectangle(0, 0, 8, 8)),
    ]
    larger = Mask.of(rectangle(0, 0, 9, 9) | rectangle(40, 40, 48, 48))
    assert spots(larger, []) == [
        Mask.of(rectangle(0, 0, 9, 9)),
        Mask.of(rectangle(40, 40, 48, 48)),
    ]


def test_a_speck_is_dropped_beside_a_spot_but_not_alone() -> None:
    heat = heatmap((24, 24))
    heat[60, 76] = 0.2
    rule = MaskRule("otsu", dilate=0)
    assert flaw_mask([heat], (), size=SIZE, rule=rule) == Mask.of(rectangle(24, 24, 32, 32))
    lone = np.zeros((64, 80), np.float32)
    lone[60, 76] = 0.2
    assert flaw_mask([lone], (), size=SIZE, rule=rule) == Mask.of(rectangle(76, 60, 77, 61))


def test_boxes_are_used_if_no_heatmap_says_where() -> None:
    flat = np.full((64, 80), 0.3, np.float32)
    mask = flaw_mask([flat], [(40.5, 8.0, 70.0, 39.0)], size=SIZE, rule=MaskRule(dilate=0))
    assert mask == Mask.of(rectangle(40, 8, 70, 39))


@pytest.mark.parametrize(
    ("heatmaps", "boxes"),
    [
        ([], []),
        ([np.full((64, 80), 0.3, np.float32)], []),
        ([np.full((64, 80), 0.8, np.float32)], [(0.0, 0.0, 8.0, 8.0)]),
        ([], [(0.0, 0.0, 80.0, 64.0)]),
        ([np.tile(np.linspace(0.3, 0.5, 80, dtype=np.float32), (64, 1))], []),
    ],
    ids=["nothing known", "flat", "all is wrong", "one box over all", "no place stands out"],
)
def test_without_a_place_there_is_no_mask(heatmaps: list, boxes: list) -> None:
    assert flaw_mask(heatmaps, boxes, size=SIZE, rule=MaskRule(area=(0.005, 0.25))) is None


def test_dilation_is_a_share_of_the_shorter_side() -> None:
    mask = flaw_mask([heatmap((24, 24))], (), size=SIZE, rule=MaskRule(dilate=0.1))
    assert mask == Mask.of(rectangle(18, 18, 38, 38))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": "fixed"}, "threshold must be one of"),
        ({"level": 1.0}, r"level must be in \(0, 1\), got 1.0"),
        ({"area": (0.5, 0.2)}, r"area must be two rising shares .* got \(0.5, 0.2\)"),
        ({"dilate": -1}, "dilate must not be negative, got -1"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MaskRule(**values)


def test_a_heatmap_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"A heatmap must have the image's shape \(64, 80\), got"):
        flaw_mask([np.zeros((8, 8), np.float32)], (), size=SIZE)


@given(
    heat=hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70),
        elements=st.floats(0, 1, width=32), fill=st.just(np.float32(0)),
    ),
    rule=st.builds(
        MaskRule, st.sampled_from(["mass", "quantile", "otsu"]), st.floats(0.05, 0.95),
        st.just((0.0, 1.0)), st.sampled_from([0, 0.02, 0.1]),
    ),
)  # fmt: skip
@settings(deadline=None, max_examples=30)
def test_a_mask_covers_the_hottest_pixel(heat: np.ndarray, rule: MaskRule) -> None:
    height, width = heat.shape
    mask = flaw_mask([heat], (), size=(width, height), rule=rule)
    if mask is None:
        assert heat.mean() > 0.6 or np.ptp(heat) < 0.02
        return
    assert mask.array().flat[int(heat.argmax())]
