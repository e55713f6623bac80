"""The nouns: masks, budgets, heatmaps, families of proposals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from tts_verifier.errors import InputError
from tts_verifier.types import (
    Budget,
    Continue,
    Cost,
    Draw,
    Heatmap,
    Heatmaps,
    Look,
    LowBand,
    Mask,
    Near,
    Prompt,
    Proposal,
    Repaint,
    Trial,
    kind_of,
    parent_of,
)

MASK = Mask.of(np.ones((1, 1), np.bool_))


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_a_mask_keeps_every_pixel(array: np.ndarray) -> None:
    mask = Mask.of(array)
    assert mask.array().dtype == np.bool_
    assert mask.array().tolist() == array.tolist()
    assert mask == Mask.of(array.copy())
    assert hash(mask) == hash(Mask.of(array.copy()))
    assert mask != Mask.of(~array)


@pytest.mark.parametrize("array", [np.ones((2, 2)), np.ones(4, np.bool_), np.ones((1, 2, 2)) > 0])
def test_a_mask_is_two_dimensional_and_bool(array: np.ndarray) -> None:
    with pytest.raises(InputError, match="bool array of shape"):
        Mask.of(array)


@pytest.mark.parametrize(
    ("proposal", "kind", "parent"),
    [
        (Draw(1), "draw", None),
        (Draw(1, noise=Near("p", 0.5)), "draw", "p"),
        (Draw(1, noise=LowBand((0.0,), 1)), "draw", None),
        (Continue("p", 1.0, 1), "continue", "p"),
        (Repaint("p", MASK, 1), "repaint", "p"),
        (Look("p"), "look", "p"),
    ],
)
def test_every_proposal_has_a_kind_and_perhaps_a_parent(
    proposal: Proposal, kind: str, parent: str | None
) -> None:
    assert (kind_of(proposal), parent_of(proposal)) == (kind, parent)


def test_costs_add_up() -> None:
    assert Cost(1, 2, 3, 4.0, 5.0) + Cost(10, 20, 30, 40.0, 50.0) == Cost(11, 22, 33, 44.0, 55.0)


def test_a_budget_counts_down_to_zero() -> None:
    budget = Budget(candidates=5, network_evaluations=100, verifier_calls=None, seconds=10.0)
    used = Cost(network_evaluations=120, verifier_calls=7, generate_seconds=2.0, verify_seconds=3.0)
    left = budget.left(2, used)
    assert left == Budget(3, 0, None, 5.0)
    assert left.spent
    assert not budget.spent
    assert not Budget().spent


def test_a_heatmap_is_stretched_over_the_image() -> None:
    heatmap = Heatmap(np.array([[0, 1]], np.float32), (8, 3))
    pixels = heatmap.on_image()
    assert pixels.dtype == np.float32
    assert pixels.shape == (3, 8)
    assert pixels[0].tolist() == sorted(pixels[0].tolist())
    assert (pixels[:, 0] == 0).all()
    assert (pixels[:, -1] == 1).all()


def test_a_letterboxed_heatmap_is_a_window_on_the_grid() -> None:
    grid = np.array([[0, 0], [0.2, 0.4], [0.6, 1], [0, 0]], np.float32)
    whole = Heatmap(grid, (8, 8)).on_image()
    window = Heatmap(grid, (8, 4), (0, 0.25, 1, 0.75)).on_image()
    assert np.allclose(window, whole[2:6], atol=1e-6)


def test_heatmaps_are_a_mapping_without_what_is_not_there() -> None:
    maps = Heatmaps({"artifact": Heatmap(np.zeros((2, 2), np.float32), (4, 4))})
    assert list(maps) == ["artifact"]
    assert maps.get("misalignment") is None
    assert maps["artifact"].shape == (4, 4)
    assert repr(maps) == "Heatmaps(artifact)"
    assert len(Heatmaps()) == 0


@pytest.mark.parametrize(
    ("progress", "error", "finished"), [(1.0, "", True), (0.9, "", False), (1.0, "bad", False)]
)
def test_a_trial_is_finished_when_all_steps_were_taken(
    progress: float, error: str, finished: bool
) -> None:
    trial = Trial("a", Prompt("0", "x"), 0, Draw(1), progress, None, 0.5, error=error)
    assert trial.finished is finished
