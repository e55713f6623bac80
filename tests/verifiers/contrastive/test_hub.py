"""Values that the authors publish, with the released weights of the hub; run with `-m hub`."""

import urllib.request

import pytest
import torch

from tts_verifier.verifiers.contrastive.clip import ClipScore, PickScore
from tts_verifier.verifiers.contrastive.hpsv2 import HPSv2
from tts_verifier.verifiers.contrastive.imagereward import ImageReward

pytestmark = pytest.mark.hub

OCEAN = "a painting of an ocean with clouds and birds, day time, low depth field effect"
PICTURES = "https://raw.githubusercontent.com/zai-org/ImageReward/main/assets/images"
REWARDS = [0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492]
"""README of image-reward 1.5."""


@pytest.fixture(scope="module")
def ocean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ocean")
    paths = [folder / f"{number}.webp" for number in (1, 2, 3, 4)]
    for path in paths:
        urllib.request.urlretrieve(f"{PICTURES}/{path.name}", path)
    return paths


def test_imagereward_gives_the_rewards_of_its_readme(ocean):
    verdicts = ImageReward().verify(ocean, [OCEAN] * 4)
    assert [v.scores["imagereward"] for v in verdicts] == pytest.approx(REWARDS, abs=1e-2)


def test_clip_score_is_that_of_the_documentation_of_torchmetrics():
    generator = torch.Generator().manual_seed(42)
    image = torch.randint(255, (3, 224, 224), generator=generator).to(torch.uint8)
    verdict = ClipScore("openai/clip-vit-base-patch16").verify([image], ["a photo of a cat"])[0]
    assert verdict.scores["clip"] == pytest.approx(24.426, abs=1e-2)


@pytest.mark.parametrize(("judge", "name"), [(PickScore, "pick"), (HPSv2, "hpsv2")])
def test_the_other_judges_prefer_the_better_pictures(judge, name, ocean):
    first, second, third, fourth = (v.scores[name] for v in judge().verify(ocean, [OCEAN] * 4))
    assert max(first, second) > max(third, fourth)
