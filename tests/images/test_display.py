"""Overlays and notebook cards: which pixels change, and that all text is escaped."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.images.display import overlay
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import (
    Draw,
    Heatmap,
    Heatmaps,
    InMemory,
    Prompt,
    Trial,
    Verdict,
)
from tts_verifier.types.score_names import written_scores

GREY = Image.new("RGB", (8, 4), (100, 100, 100))


def ramp() -> Heatmap:
    """0 on the left half, 1 on the right, on a grid of the picture's size."""
    grid = np.zeros((4, 8), np.float32)
    grid[:, 4:] = 1
    return Heatmap(grid, (8, 4))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_zero_leaves_the_picture_and_one_is_yellow() -> None:
    shown = pixels(overlay(GREY, {"a": ramp().on_image()}))
    assert (shown[:, :4] == 100).all()
    assert shown[0, 7].tolist() == [193, 190, 132], "0.4 of grey and 0.6 of the ramp's end"


def test_boxes_are_drawn_on_the_pixels_inside() -> None:
    shown = pixels(overlay(GREY, {}, [(1, 1, 4, 3)]))
    red = (shown == (255, 45, 120)).all(-1)
    assert red.astype(int).tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_a_box_without_area_is_a_dot() -> None:
    shown = pixels(overlay(GREY, {}, [(2, 2, 2, 2)]))
    assert shown[2, 2].tolist() == [255, 45, 120]
    assert (shown == 100).all(-1).sum() >= 30


def test_a_verdict_shows_one_map_or_the_largest_of_all() -> None:
    low = Heatmap(np.full((4, 8), 0.2, np.float32), (8, 4))
    verdict = Verdict({}, Heatmaps({"a": ramp(), "b": low}))
    both, first = pixels(verdict.overlay(GREY)), pixels(verdict.overlay(GREY, "a"))
    assert (both[:, 4:] == first[:, 4:]).all()
    assert (first[:, :4] == 100).all()
    assert (both[:, :4] != 100).any()
    assert (pixels(Verdict({}).overlay(GREY)) == 100).all()


def test_what_cannot_be_overlaid_is_named() -> None:
    verdict = Verdict({}, Heatmaps({"a": ramp()}))
    with pytest.raises(InputError, match=r"There is no map 'c'\. Available: a\."):
        verdict.overlay(GREY, "c")
    with pytest.raises(InputError, match="got 8 x 4 for an image of 5 x 5"):
        verdict.overlay(Image.new("L", (5, 5)))


def test_rankings_and_trials_show_themselves_in_notebooks() -> None:
    images = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "red")]
    html = FakeVerifier().rerank(images, "x")._repr_html_()
    assert html.count("data:image/webp;base64,") == 4
    assert html.index("1. image 1 · 0.800") < html.index("2. image 0")
    trial = Trial(
        "x", Prompt("p", "<script>"), 0, Draw(1), 1.0, Verdict({"a": math.nan}, text="<b>"), 0.5,
        image=InMemory(GREY), judge={"passed": 1.0},
    )  # fmt: skip
    html = trial._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt; · 0.500" in html
    assert "&lt;b&gt;" in html
    assert "<td>a</td><td>–</td>" in html
    assert "judge: passed" in html
    failed = Trial("x", Prompt("p", "p"), 0, Draw(1), 1.0, error="why")
    assert "<b>p · why</b>" in failed._repr_html_()


def test_finer_scores_are_for_logs_and_objectives_not_for_people():
    scores = {"overall": 0.5, "overall_expected": 0.512}
    assert written_scores(scores) == {"overall": 0.5}


def test_a_verdict_is_shown_without_its_image() -> None:
    verdict = FakeVerifier().verify([GREY], ["x"])[0]
    assert re.fullmatch(
        r"Verdict\(diagnose: semantic_alignment 0\.\d+, aesthetics .*; heatmaps .*artifact.*\)",
        repr(verdict),
    )
    html = verdict._repr_html_()
    assert html.count("<img") == len(verdict.heatmaps)
    assert "<b>diagnose: " in html
    silent = Verdict({}, detail="score", error="no reply <1>")
    assert repr(silent) == "Verdict(score: no scores; error: no reply <1>)"
    assert "no reply &lt;1&gt;" in silent._repr_html_()
    boxed = Verdict({"a": 1.0, "a_expected": 0.9}, boxes=((0, 0, 1, 1),))
    assert repr(boxed) == "Verdict(diagnose: a 1.000; boxes 1)"


def test_a_trial_is_one_line() -> None:
    whole = Trial("t1", Prompt("0", "a cat"), 2, Draw(1), 1.0, objective=0.5)
    assert repr(whole) == "Trial(t1, 'a cat', Draw of round 2: 0.500)"
    half = replace(whole, progress=0.4, error="out of memory")
    assert repr(half) == "Trial(t1, 'a cat', Draw of round 2, 40% of the steps: out of memory)"
