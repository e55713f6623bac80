"""Rewards are a verifier's verdicts: numbers, details, and maps pooled to a grid."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from serving import serving
from tiny_imagedoctor import noise

from tts_verifier.errors import InputError, RunError, RunWarning, ServerError, UnsupportedError
from tts_verifier.interfaces import Verifier
from tts_verifier.reward import VerifierReward, flow_grpo
from tts_verifier.reward.verl_omni import compute_score
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Heatmap, Heatmaps, Verdict
from tts_verifier.verifiers.remote import Remote

IMAGES = [noise(24, 16, seed=i) for i in range(4)]
PROMPTS = ["a", "b", "c", "d"]


class Given(Verifier):
    """Gives verdicts that a test has written down."""

    map_names = ("misalignment", "artifact")

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)

    def verify(self, images: Any, prompts: Any, *, detail: Any = "diagnose") -> list[Verdict]:
        return self.verdicts


def verdict(score: float, **maps: float) -> Verdict:
    grids = {name: np.full((4, 4), value, np.float32) for name, value in maps.items()}
    names = ("semantic_alignment", "aesthetics", "plausibility")
    found = {name: Heatmap(grid, (8, 8)) for name, grid in grids.items()}
    return Verdict(dict.fromkeys(names, score), Heatmaps(found))


def test_a_reward_is_the_objective_with_its_scores_and_pooled_maps() -> None:
    rewards = VerifierReward(FakeVerifier(), grid=(3, 2))(IMAGES, PROMPTS)
    verdicts = FakeVerifier().verify(IMAGES, PROMPTS)
    assert rewards.scores.tolist() == [FakeVerifier().objective(v.scores) for v in verdicts]
    assert list(rewards.details) == list(verdicts[0].scores)
    assert rewards.details["overall"].tolist() == [v.scores["overall"] for v in verdicts]
    assert rewards.missing == {}
    for maps, one in zip(rewards.maps, verdicts, strict=True):
        for name in one.heatmaps:
            grid = one.heatmaps.on_grid(name).grid
            assert maps[name].dtype == np.float32
            np.testing.assert_allclose(maps[name], grid.reshape(3, 2, 2, 3).mean((1, 3)), rtol=1e-6)


def test_a_map_is_pooled_by_area_over_the_picture_alone() -> None:
    grid = np.arange(16, dtype=np.float32).reshape(4, 4) / 16
    whole = Heatmap(grid, (8, 8))
    np.testing.assert_array_equal(whole.pooled(4, 4), grid)
    assert whole.pooled(1, 1).item() == pytest.approx(grid.mean())
    np.testing.assert_allclose(
        whole.pooled(3, 1)[0, 0], (grid[0].mean() + grid[1].mean() / 3) / (4 / 3)
    )
    np.testing.assert_array_equal(whole.pooled(8, 8), grid.repeat(2, 0).repeat(2, 1))
    # A picture twice as wide as high, between two bars.
    boxed = Heatmap(grid, (8, 4), (0.0, 0.25, 1.0, 0.75))
    np.testing.assert_allclose(boxed.pooled(2, 4), grid[1:3])
    thin = Heatmap(grid, (800, 1), (0.0, 0.4999, 1.0, 0.5001))
    assert np.isfinite(thin.pooled(64, 64)).all()


def test_what_is_missing_is_absent_and_counted() -> None:
    given = Given(verdict(0.5, misalignment=0.2, artifact=0.4), verdict(math.nan, artifact=0.1))
    with pytest.warns(RunWarning, match=r"1 of 2 pictures have no reward \(NaN\)"):
        rewards = VerifierReward(given, grid=(2, 2))(IMAGES[:2], PROMPTS[:2])
    assert rewards.missing == {"score": 1, "misalignment": 1}
    assert math.isnan(rewards.scores[1])
    assert list(rewards.maps[1]) == ["artifact"]
    stack, found = rewards.stacked("misalignment")
    assert found.tolist() == [True, False]
    assert np.isnan(stack[1]).all()
    flaws, found = rewards.flaws()
    assert found.tolist() == [True, False]
    np.testing.assert_allclose(flaws[0], 0.4)
    assert np.isnan(flaws[1]).all()


def test_maps_that_no_picture_has_are_counted_and_cannot_be_stacked() -> None:
    rewards = VerifierReward(Given(verdict(0.5), verdict(0.6)))(IMAGES[:2], PROMPTS[:2])
    assert rewards.missing == {"misalignment": 2, "artifact": 2}
    for stacked in (rewards.flaws, lambda: rewards.stacked("artifact")):
        with pytest.raises(UnsupportedError, match="None of 2 pictures has a map"):
            stacked()
    quick = VerifierReward(FakeVerifier(), detail="score")(IMAGES, PROMPTS)
    assert quick.missing == {}
    with pytest.raises(UnsupportedError, match=r"has a map 'flaws'.*train without maps"):
        quick.flaws()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"grid": (0, 3)}, InputError, "A grid must be rows and columns from 1 to 1024"),
        ({"grid": 64}, InputError, "A grid must be rows and columns"),
        ({"grid": (2.0, 2)}, InputError, "A grid must be rows and columns"),
        ({"objective": {"beauty": 1}}, InputError, "got 'beauty'"),
        ({"detail": "look"}, UnsupportedError, "must be one that the verifier has"),
    ],
)
def test_arguments_are_checked(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        VerifierReward(FakeVerifier(), **options)


def test_a_verifier_must_give_a_verdict_for_each_picture() -> None:
    with pytest.raises(RunError, match="Given must return a verdict for each of 2 images, in a l"):
        VerifierReward(Given(verdict(0.5)))(IMAGES[:2], PROMPTS[:2])
    nothing: Any = None
    with pytest.raises(RunError, match="it returned a NoneType"):
        VerifierReward(Given(verdict(0.5), nothing))(IMAGES[:2], PROMPTS[:2])


@pytest.mark.parametrize("verifier", [None, FakeVerifier, 3])
def test_a_verifier_is_an_object_that_verifies(verifier: Any) -> None:
    with pytest.raises(InputError, match="must be an object with the method verify, or a name"):
        VerifierReward(verifier)


@pytest.mark.parametrize("images", [None, {"a": IMAGES[0]}, 3])
def test_what_is_no_list_of_pictures_is_refused(images: Any) -> None:
    with pytest.raises(InputError, match="A list of images is needed, got a "):
        VerifierReward(FakeVerifier())(images, ["x"])


@pytest.mark.parametrize("fill", ["x", True, math.nan, math.inf])
def test_the_reward_of_a_picture_without_one_is_a_number(fill: Any) -> None:
    pixels = torch.zeros(3, 8, 8)
    for call in (
        lambda: flow_grpo.scorer(FakeVerifier(), fill=fill),
        lambda: flow_grpo.multi_score(FakeVerifier(), fill=fill),
        lambda: asyncio.run(compute_score(pixels, "a", verifier="fake", fill=fill)),
    ):
        with pytest.raises(InputError, match="fill must be the reward of a picture that has none"):
            call()


def test_one_picture_is_no_list() -> None:
    with pytest.raises(InputError, match="A list of images is needed, got one image"):
        VerifierReward(FakeVerifier())(Image.new("RGB", (8, 8)), ["x"])  # type: ignore[arg-type]


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(InputError, match="4 images and 3 prompts"):
        VerifierReward(FakeVerifier())(IMAGES, PROMPTS[:3])


def test_flow_grpo_gets_lists_in_its_two_shapes() -> None:
    # As its pipelines give them: (N, 3, H, W) in [0, 1]; and as its scorers do: uint8 (N, H, W, 3).
    arrays = np.stack([np.asarray(image) for image in IMAGES])
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255
    rewards = VerifierReward(FakeVerifier(), grid=(2, 2))(IMAGES, PROMPTS)
    for images in (arrays, tensors):
        scores, meta = flow_grpo.scorer(FakeVerifier(), grid=(2, 2))(images, PROMPTS, [{}] * 4)
        assert scores == rewards.scores.tolist()
        assert [weight * score for weight, score in zip([1.0] * 4, scores, strict=True)] == scores
        assert np.array_equal(meta["heatmap"][1], rewards.flaws()[0][1])
    details, meta = flow_grpo.multi_score(FakeVerifier())(tensors, PROMPTS, {}, only_strict=True)
    assert details["avg"] == rewards.scores.tolist()
    assert details["overall"] == rewards.details["overall"].tolist()
    assert meta["missing"] == {}
    assert meta["heatmap"][0].shape == (64, 64)
    with pytest.raises(InputError, match="Leave out ref_images"):
        flow_grpo.multi_score(FakeVerifier())(tensors, PROMPTS, {}, ref_images=tensors)


@pytest.mark.filterwarnings("ignore::tts_verifier.errors.RunWarning")
def test_flow_grpo_gets_nan_or_what_it_asks_for_and_no_map_is_none() -> None:
    given = Given(verdict(0.5, misalignment=0.2, artifact=0.4), verdict(math.nan, artifact=0.1))
    scores, meta = flow_grpo.scorer(given)(IMAGES[:2], PROMPTS[:2], {})
    assert math.isnan(scores[1])
    assert meta["heatmap"][1] is None
    assert meta["missing"] == {"score": 1, "misalignment": 1}
    for fill in (0.25, np.float32(0.25)):
        filled, _ = flow_grpo.scorer(given, fill=fill)(IMAGES[:2], PROMPTS[:2], {})
        assert filled == [0.5, 0.25]
    scores, meta = flow_grpo.scorer(FakeVerifier(), detail="score")(IMAGES, PROMPTS, {})
    assert meta["heatmap"] == [None] * 4


def test_pictures_that_all_lack_one_of_two_maps_have_no_map_of_flaws() -> None:
    given = Given(verdict(0.5, artifact=0.4), verdict(0.6, artifact=0.1))
    flaws, found = VerifierReward(given, grid=(2, 3))(IMAGES[:2], PROMPTS[:2]).flaws()
    assert found.tolist() == [False, False]
    assert flaws.shape == (2, 2, 3)
    assert np.isnan(flaws).all()
    assert flow_grpo.scorer(given)(IMAGES[:2], PROMPTS[:2])[1]["heatmap"] == [None, None]


def test_a_remote_verifier_rewards_as_one_here_does() -> None:
    with serving(FakeVerifier()) as url:
        there = VerifierReward(Remote(url))(IMAGES, PROMPTS)
    here = VerifierReward(FakeVerifier())(IMAGES, PROMPTS)
    assert there.scores.tolist() == here.scores.tolist()
    for one, other in zip(there.maps, here.maps, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in here.maps[0])


def test_verl_omni_gets_a_dict_of_one_picture() -> None:
    pixels = torch.from_numpy(np.asarray(IMAGES[0]).copy()).permute(2, 0, 1)
    verdicts = FakeVerifier().verify(IMAGES[:1], ["a"])
    expected = dict(verdicts[0].scores) | {"score": FakeVerifier().objective(verdicts[0].scores)}

    async def ask(url: str) -> Any:
        more = {"data_source": "x", "extra_info": {}}
        return await asyncio.gather(
            compute_score(pixels, "a", url, **more),
            compute_score(pixels[None], "a", server_url=url),
            compute_score(pixels, "a", verifier="fake", detail="score"),
        )

    with serving(FakeVerifier()) as url:
        assert asyncio.run(ask(url)) == [expected] * 3


def test_pictures_of_a_batch_do_not_each_wait_for_a_server_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def gone(url: str) -> Verifier:
        asked.append(url)
        time.sleep(0.2)
        raise ServerError("does not answer")

    async def ask() -> Any:
        pixels = torch.zeros(3, 8, 8)
        calls = (compute_score(pixels, "a", "http://gone") for _ in range(8))
        return await asyncio.gather(*calls, return_exceptions=True)

    monkeypatch.setattr("tts_verifier.reward.verl_omni.Remote", gone)
    assert all(isinstance(error, ServerError) for error in asyncio.run(ask()))
    first = len(asked)
    assert first < 8
    asyncio.run(ask())
    assert len(asked) > first


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (torch.zeros(3, 8, 8), {}, "needs a server_url or a verifier"),
        (torch.zeros(3, 8, 8), {"server_url": "http://x", "verifier": "fake"}, "and not both"),
        (torch.zeros(2, 3, 8, 8), {"verifier": "fake"}, "takes one picture, got a batch"),
        (Image.new("RGB", (8, 8)), {"server_url": "x"}, "must begin with http"),
        (Image.new("RGB", (8, 8)), {"server_url": 3}, "server_url and verifier must be texts"),
        (Image.new("RGB", (8, 8)), {"verifier": ["fake"]}, "server_url and verifier must be texts"),
    ],
)
def test_what_verl_omni_may_not_ask(image: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        asyncio.run(compute_score(image, "a", **options))
