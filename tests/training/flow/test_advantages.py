"""Advantages equal plain numpy; maps are pooled to the latent grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tts_verifier.training.flow.formulas.advantages import (
    AdvantageKind,
    Deviation,
    compare_pictures,
)
from tts_verifier.types import Heatmap

DENSE: tuple[AdvantageKind, ...] = ("mask", "dense", "penalty")
REWARDS = np.random.default_rng(0).random((3, 4))
MAPS = np.random.default_rng(1).random((3, 4, 2, 5))


def plain(kind: str, rewards: Any, maps: Any, deviation: str, most: float = 5.0) -> Any:
    """The advantages as the official code and the papers write them."""
    pixel = rewards[:, :, None, None]
    if kind == "dense":
        pixel = pixel * (1 - maps)
    elif kind == "penalty":
        pixel = pixel - rewards.std(1)[:, None, None, None] * maps
    mean = pixel.mean(1, keepdims=True)
    std = pixel.std() if deviation == "global" else pixel.std(1, keepdims=True)
    ratio = 1 if deviation == "global" else std / rewards.std(1)[:, None, None, None]
    found = np.clip((pixel - mean) / (std + 1e-4 * np.maximum(ratio, 1)), -most, most)
    return found * (1 - maps) if kind == "mask" else found


@pytest.mark.parametrize("deviation", ["global", "group"])
@pytest.mark.parametrize("kind", ["scalar", *DENSE])
def test_advantages_are_those_of_plain_numpy(kind: AdvantageKind, deviation: Deviation) -> None:
    found = compare_pictures(
        kind, torch.from_numpy(REWARDS), torch.from_numpy(MAPS), deviation=deviation, most=1.2
    )
    expected = plain(kind, REWARDS, MAPS, deviation, 1.2)
    np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-6)
    assert found.varies.all()
    assert found.counts.all()


@pytest.mark.parametrize("deviation", ["global", "group"])
@pytest.mark.parametrize("kind", DENSE)
def test_maps_of_zeros_change_nothing(kind: AdvantageKind, deviation: Deviation) -> None:
    rewards, zeros = torch.from_numpy(REWARDS), torch.zeros(3, 4, 2, 5)
    scalar = compare_pictures("scalar", rewards, deviation=deviation).values
    dense = compare_pictures(kind, rewards, zeros, deviation=deviation).values
    assert torch.equal(dense, scalar.expand(-1, -1, 2, 5))


def test_a_group_without_variance_gets_nothing_and_is_told() -> None:
    rewards = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    found = compare_pictures("scalar", rewards)
    assert found.varies.tolist() == [False, True]
    assert not found.values[0].any()
    # Their maps may still differ.
    maps = torch.rand(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert compare_pictures("dense", rewards, maps).varies.all()
    found = compare_pictures("dense", rewards, maps, deviation="group")
    assert found.varies.tolist() == [False, True]
    assert not found.values[0].any()


def test_where_rewards_hardly_differ_maps_count_as_little_as_they_do() -> None:
    maps = torch.from_numpy(MAPS[:1])
    for apart in (1e-1, 1e-3, 1e-4, 4e-5):
        rewards = 0.5 + apart * torch.tensor([[-1.0, 1.0, -1.0, 1.0]], dtype=torch.float64)
        scalar = compare_pictures("scalar", rewards, deviation="group").values
        dense = compare_pictures("dense", rewards, maps, deviation="group").values
        assert scalar.std(correction=0) == pytest.approx(apart / (apart + 1e-4))
        assert dense.std(1, correction=0).max() <= scalar.std(correction=0) + 1e-6


@pytest.mark.parametrize("kind", ["scalar", "dense"])
def test_a_picture_without_a_reward_is_left_out_of_its_group(kind: AdvantageKind) -> None:
    rewards = torch.from_numpy(REWARDS).clone()
    rewards[0, 1] = torch.nan
    found = compare_pictures(kind, rewards, torch.from_numpy(MAPS), deviation="group")
    assert found.counts.tolist()[0] == [True, False, True, True]
    rest = plain(kind, REWARDS[:1, [0, 2, 3]], MAPS[:1, [0, 2, 3]], "group")
    np.testing.assert_allclose(found.values[0, [0, 2, 3]], rest[0], rtol=1e-4)
    assert not found.values[0, 1].any()


def test_a_picture_without_a_map_is_left_out_only_where_maps_count() -> None:
    maps = torch.from_numpy(MAPS).clone()
    maps[2, 0] = torch.nan
    rewards = torch.from_numpy(REWARDS)
    assert compare_pictures("scalar", rewards, maps).counts.all()
    found = compare_pictures("dense", rewards, maps)
    assert found.counts[2].tolist() == [False, True, True, True]
    assert found.values.isfinite().all()


def test_maps_are_pooled_like_averages_where_the_grid_divides_them() -> None:
    grid = np.random.default_rng(0).random((8, 6), np.float32)
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(grid)[None], 2)[0]
    np.testing.assert_allclose(Heatmap(grid, (12, 16)).pooled(4, 3), expected, rtol=1e-6)


@pytest.mark.parametrize("grid", [(5, 7), (16, 16), (1, 1), (3, 40)])
def test_any_grid_keeps_the_mean_of_a_map(grid: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random((9, 12), np.float32)
    pooled = Heatmap(values, (90, 90)).pooled(*grid)
    assert pooled.shape == grid
    assert pooled.mean() == pytest.approx(values.mean(), rel=1e-5)


def test_a_cell_on_a_border_counts_for_both_fields() -> None:
    pooled = Heatmap(np.array([[0.0, 0.6, 0.9]], np.float32), (3, 1)).pooled(1, 2)
    np.testing.assert_allclose(pooled, [[(0 + 0.6 / 2) / 1.5, (0.6 / 2 + 0.9) / 1.5]], rtol=1e-6)


def test_only_the_part_that_shows_the_image_is_pooled() -> None:
    values = np.array([[0.0, 0.0], [0.2, 0.4], [0.6, 0.8], [0.0, 0.0]], np.float32)
    pooled = Heatmap(values, (2, 2), (0.0, 0.25, 1.0, 0.75)).pooled(2, 2)
    np.testing.assert_allclose(pooled, values[1:3], rtol=1e-6)
