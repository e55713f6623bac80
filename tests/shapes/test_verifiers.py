import pytest

from tts_verifier import shapes
from tts_verifier.errors import InputError
from tts_verifier.shapes.verifiers import JudgeVerifier, OracleVerifier


@pytest.mark.parametrize("verifier", [OracleVerifier(), JudgeVerifier()])
def test_readers_are_verifiers(verifier):
    caption = "a blue star left of a red ring"
    good = shapes.render(caption, 1).resize((256, 384))
    bad = shapes.render("a blue star right of a red ring", 1).resize((256, 384))
    ranking = verifier.rerank([bad, good], caption)
    assert [item.index for item in ranking] == [1, 0]
    assert ranking.best.verdict.scores["passed"] == 1.0
    worst = ranking[-1].verdict
    assert worst.heatmaps["misalignment"].shape == (384, 256)
    (x1, y1, x2, y2) = worst.boxes[0]
    assert 128 < (x1 + x2) / 2 < 256
    assert 0 <= y1 < y2 <= 384


def test_a_verifier_refuses_a_caption_outside_the_grammar():
    with pytest.raises(InputError, match="'a cat'"):
        OracleVerifier().verify([shapes.render("a ring", 0)], ["a cat"])
