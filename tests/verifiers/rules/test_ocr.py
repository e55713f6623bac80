"""The OCR judge on texts that Pillow draws: real weights, which come in rapidocr's wheel."""

import logging
import math
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from cases import mostly_slow
from PIL import Image, ImageDraw, ImageFont
from threads import at_once

from tts_verifier import registry
from tts_verifier.errors import CheckpointError, InputError, UnsupportedError
from tts_verifier.interfaces import names_of_scores
from tts_verifier.runner import run
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.strategies.common.masks import flaw_mask
from tts_verifier.strategies.inpaint_reroll import InpaintReroll
from tts_verifier.testing import FakeGenerator, check_verifier
from tts_verifier.types import Cost, Draw, Job, Repaint, Sample
from tts_verifier.verifiers import load_verifier

pytest.importorskip("rapidocr")
pytest.importorskip("onnxruntime")

SIDE = 256
PROMPT = 'a sign that says "OPEN DAILY"'
TEXTS = ("OPEN", "DAILY")


def sign(words: Sequence[str], top: int = 50) -> Image.Image:
    """A word a line, on a ramp of blue."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:, :, 2] = np.linspace(60, 120, SIDE, dtype=np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for row, word in enumerate(words):
        draw.text((40, top + 90 * row), word, "white", ImageFont.load_default(48))
    return image


@pytest.fixture(scope="module")
def judge():
    return load_verifier("ocr")


def test_right_text_scores_one_and_a_wrong_letter_less(judge) -> None:
    right, wrong = judge.verify([sign(TEXTS), sign(("OPEN", "DAIKY"))], [PROMPT] * 2)
    assert right.scores == {"text_match": 1.0, "text_exact": 1.0}
    assert right.boxes == ()
    assert right.heatmaps["misspelling"].max() == 0
    assert right.text == '"OPEN DAILY": read as it should be.'
    assert wrong.scores["text_match"] == pytest.approx(8 / 9)
    assert wrong.scores["text_exact"] == 0
    assert wrong.text == '"OPEN DAILY": read "OPEN DAIKY", 0.889, wrong: DAIKY.'
    (x1, y1, x2, y2) = wrong.boxes[0]
    heat = wrong.heatmaps["misspelling"]
    assert heat.shape == (SIDE, SIDE)
    # The second line is wrong, the first one is right.
    assert 110 < y1 < y2 < 215
    assert 20 < x1 < x2 < 210
    assert heat[round((y1 + y2) / 2), round((x1 + x2) / 2)] == 1
    assert heat[:110].max() == 0


def test_texts_that_are_read_as_one_word_are_judged_apart(judge) -> None:
    verdict = judge.verify([sign(("OPEN24",))], ['signs that say "OPEN" and "25"'])[0]
    assert verdict.scores == {"text_match": 0.75, "text_exact": 0.0}
    assert verdict.text.splitlines()[0] == '"OPEN": read as it should be.'


def test_a_picture_without_text_scores_zero_and_says_so(judge) -> None:
    verdict = judge.verify([sign(())], [PROMPT])[0]
    assert verdict.scores == {"text_match": 0.0, "text_exact": 0.0}
    assert verdict.text == '"OPEN DAILY": not found, no text at all was read.'
    # No place is flawed, so a search draws afresh.
    assert flaw_mask(list(verdict.heatmaps.values()), verdict.boxes, size=(SIDE, SIDE)) is None


def test_quoted_texts_of_many_letters_are_not_judged(judge) -> None:
    verdict = judge.verify([Image.new("RGB", (40, 40))], [f'a page: "{"abc " * 300}"'])[0]
    assert math.isnan(verdict.scores["text_match"])
    assert "must have at most 1000 letters, these have 1199" in verdict.error


def test_a_prompt_without_quotes_is_not_judged(judge) -> None:
    verdict = judge.verify([sign(TEXTS)], ["a sign that says OPEN"])[0]
    assert all(math.isnan(value) for value in verdict.scores.values())
    assert set(verdict.scores) == set(judge.score_names)
    assert verdict.error.startswith("Not judged: the prompt has no text in quotes. Put the text")
    result = run(["a sign"], FakeGenerator(), judge, BestOfN(1))
    assert result.trials[0].error == verdict.error


@pytest.mark.parametrize("size", mostly_slow([(1, 1), (3, 60)], quick=[(3, 60)]))
def test_a_picture_of_any_shape_can_be_judged(judge, size: tuple[int, int]) -> None:
    verdict = judge.verify([Image.new("RGB", size)], [PROMPT])[0]
    assert verdict.scores["text_match"] == 0
    assert verdict.heatmaps["misspelling"].shape == size[::-1]


@pytest.mark.slow
def test_it_is_a_verifier_like_any_other(judge) -> None:
    settings = {"verifier": "ocr", "model": "PP-OCRv6 small", "case_sensitive": False}
    assert judge.settings == settings
    check_verifier(judge, [sign(("OPEN",)), sign(TEXTS)], [PROMPT] * 2)
    assert names_of_scores(judge.verify([sign(())], [PROMPT])) == dict.fromkeys(judge.score_names)


@pytest.mark.slow
def test_threads_take_turns(judge) -> None:
    images = [sign(TEXTS), sign(("OPEN", "DAIKY"))]
    calls = [lambda i=i: judge.verify([images[i % 2]], [PROMPT])[0].text for i in range(4)]
    assert [text.endswith("should be.") for text in at_once(calls)] == [True, False] * 2


def test_it_may_be_the_held_out_judge_of_a_run(judge) -> None:
    from tts_verifier.testing import FakeVerifier

    result = run([PROMPT], FakeGenerator(size=64), FakeVerifier(), BestOfN(1), judge=judge)
    assert result.trials[0].judge == {"text_match": 0.0, "text_exact": 0.0}


def test_reading_logs_nothing(judge, capfd) -> None:
    judge.verify([sign(())], [PROMPT])
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("RapidOCR").level == logging.CRITICAL


class SignPainter:
    """Draws signs with a wrong letter, and repaints letters rightly, but only inside the mask."""

    supports = frozenset({Draw, Repaint})
    settings = {"model": "sign painter"}  # noqa: RUF012
    batch_size = 4

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        return [self._sample(job) for job in jobs]

    def _sample(self, job: Job) -> Sample:
        if isinstance(job.proposal, Repaint):
            inside = job.proposal.mask.array()[:, :, None]
            before = np.asarray(job.ancestors[0].image.load())
            image = Image.fromarray(np.where(inside, np.asarray(sign(TEXTS)), before))
        else:
            image = sign(("OPEN", "DAIKY"))
        return Sample(job, image, cost=Cost(network_evaluations=1))


def test_inpaint_reroll_repaints_the_misspelt_word_alone(judge) -> None:
    strategy = InpaintReroll(1, 1, strengths=(1.0,), fresh=0)
    result = run([PROMPT], SignPainter(), judge, strategy)
    first, repaint = result.trials
    assert first.scores["text_exact"] == 0
    chosen = result.choices["0000"].trial
    assert chosen is not None
    assert chosen.id == repaint.id
    assert chosen.scores["text_exact"] == 1
    mask = repaint.proposal.mask.array()
    assert not mask[:95].any()
    assert mask[140:180, 60:160].all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, r"threads must be None or a number from 1 up, got 0\."),
        ({"threads": True}, r"threads must be None or a number from 1 up, got True\."),
        ({"threads": 1.5}, r"threads must be None or a number from 1 up, got 1\.5\."),
        ({"case_sensitive": "no"}, r"case_sensitive must be true or false, got 'no'\."),
    ],
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        registry.builder("verifier", "ocr")(**arguments)
    assert caught.value.argument == next(iter(arguments))


@pytest.mark.parametrize("library", ["rapidocr", "onnxruntime"])
def test_a_missing_library_is_named_with_its_extra(library: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UnsupportedError, match=r'pip install "tts-verifier\[ocr\]"'):
        registry.builder("verifier", "ocr")()


def test_weights_that_cannot_be_loaded_are_reported_before_a_run(monkeypatch) -> None:
    import rapidocr

    def broken(params):
        raise OSError("the file is cut off")

    monkeypatch.setattr(rapidocr, "RapidOCR", broken)
    message = r"must be in rapidocr's wheel, and loading them failed: OSError\('the file is cut off"
    with pytest.raises(CheckpointError, match=message):
        registry.builder("verifier", "ocr")()
