"""The released checkpoints of the hub, for `pytest -m hub`: many gigabytes, and best on a GPU."""

import pytest
from PIL import Image

from tts_verifier.registry import builder

pytestmark = pytest.mark.hub

IMAGES = [Image.new("RGB", (448, 448), colour) for colour in ("red", "blue")]


@pytest.mark.parametrize(
    ("name", "score", "low", "high"),
    [
        ("vqascore", "vqascore", 0, 1),
        ("soft-tifa", "soft_tifa_gm", 0, 1),
        ("hpsv3", "mu", -30, 30),
        ("unifiedreward", "alignment_expected", 1, 5),
    ],
)
def test_a_plain_red_picture_is_more_red_than_a_blue_one(
    name: str, score: str, low: float, high: float
) -> None:
    verdicts = builder("verifier", name)().verify(IMAGES, ["a plain red picture"] * 2)
    red, blue = (verdict.scores[score] for verdict in verdicts)
    assert low <= blue < red <= high


def test_quality_is_written_on_its_scale() -> None:
    verdict = builder("verifier", "visualquality-r1")().verify(IMAGES[:1], ["x"])[0]
    assert 1 <= verdict.scores["quality"] <= 5


def test_hpsv3_knows_the_reward_token_of_the_released_file() -> None:
    judge = builder("verifier", "hpsv3")()
    assert judge.engine.model.reward_id == 151657
