import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from tts_verifier import shapes
from tts_verifier.errors import InputError
from tts_verifier.shapes.captions import random_specs
from tts_verifier.shapes.flaws import plant
from tts_verifier.shapes.grammar import parse
from tts_verifier.shapes.readers import judge, oracle
from tts_verifier.shapes.verifiers import JudgeVerifier, OracleVerifier

READERS = [oracle.read, judge.read]


def flawed(n, seed):
    specs = random_specs(n, random.Random(seed))
    made = plant(specs, torch.Generator().manual_seed(seed), artifact=0.0)
    pixels = (made.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return specs, pixels, made.readings


@pytest.mark.parametrize("read", READERS)
def test_a_reader_agrees_with_the_truth_on_fresh_renders(read):
    specs, pixels, truth = flawed(60, 21)
    found = [read(p, s) for p, s in zip(pixels, specs, strict=True)]
    agree = [f.passed == t.passed for f, t in zip(found, truth, strict=True)]
    assert np.mean(agree) >= 0.98
    close = [abs(f.score - t.score) < 1e-6 for f, t in zip(found, truth, strict=True)]
    assert np.mean(close) >= 0.97


@pytest.mark.parametrize("read", READERS)
def test_a_reader_bears_blur_noise_and_a_tint(read):
    specs, pixels, truth = flawed(40, 22)
    rng = np.random.default_rng(0)
    agree = []
    for picture, spec, right in zip(pixels, specs, truth, strict=True):
        soft = ndimage.gaussian_filter(picture.astype(float), (1.2, 1.2, 0))
        soft += rng.normal(0, 4, soft.shape) + rng.uniform(-12, 12, 3)
        found = read(np.clip(soft, 0, 255).astype(np.uint8), spec)
        agree.append(found.passed == right.passed)
    assert np.mean(agree) >= 0.95


def test_an_empty_picture_has_nothing():
    blank = Image.new("RGB", (128, 128), (230, 230, 235))
    for read in (shapes.oracle, shapes.judge):
        reading = read(blank, "a red circle")
        assert reading.things == ()
        assert reading.boxes == ()
        assert not reading.passed
        assert reading.score == 0.25  # only "nothing else" holds


def test_a_blob_is_a_thing_of_no_known_shape():
    picture = np.full((128, 128, 3), 235, np.uint8)
    picture[30:36, 20:100] = (222, 40, 40)
    reading = shapes.oracle(picture, "a red square")
    assert [t.shape for t in reading.things] == [None]
    assert reading.boxes == ((20.0, 30.0, 100.0, 36.0),)
    assert "red thing of no known shape" in reading.describe()


def test_a_bitten_thing_keeps_its_shape_and_its_fragment():
    picture = np.asarray(shapes.render("a blue square", 3)).copy()
    rows, columns = np.nonzero(picture[..., 0] < 100)
    middle = int(columns.mean()) + 8
    picture[rows.min() : rows.min() + 14, middle - 3 : middle + 4] = picture[0, 0]
    picture[: rows.min() + 8, middle:] = picture[0, 0]
    assert shapes.oracle(picture, "a blue square").passed


@pytest.mark.parametrize("read", [shapes.oracle, shapes.judge])
def test_a_pale_thing_of_mixed_colour_is_seen_once(read):
    at = np.mgrid[:128, :128] + 0.5
    disc = np.hypot(at[0] - 64, at[1] - 50) < 22
    picture = np.full((128, 128, 3), 235.0)
    blue = np.where(at[1] < 50, 0.75, 0.5)[..., None]
    picture = np.where(disc[..., None], 235 + blue * (np.array((40, 75, 220)) - 235), picture)
    found = read(picture.astype(np.uint8), "a blue circle").things
    assert [(t.shape, t.colour) for t in found] == [("circle", "blue")]


@pytest.mark.parametrize("read", [shapes.oracle, shapes.judge])
def test_a_thick_ring_is_a_ring(read):
    at = np.mgrid[:128, :128] + 0.5
    away = np.hypot(at[0] - 64, at[1] - 50)
    picture = np.full((128, 128, 3), 235, np.uint8)
    picture[(away < 24) & (away > 9)] = (222, 40, 40)
    assert read(picture, "a red ring").passed


def test_specks_are_not_things():
    picture = np.asarray(shapes.render("a blue square", 3)).copy()
    for corner in ((2, 2), (120, 2), (2, 120)):
        picture[corner[0] : corner[0] + 6, corner[1] : corner[1] + 6] = (222, 40, 40)
    assert shapes.oracle(picture, "a blue square").passed


def test_reading_in_processes_is_reading_one_by_one():
    specs, pixels, _ = flawed(12, 23)
    together = oracle.read_batch(pixels, specs, workers=2)
    alone = oracle.read_batch(pixels, specs, workers=1)
    assert [r.constraints for r in together] == [r.constraints for r in alone]
    assert [r.boxes for r in together] == [r.boxes for r in alone]


def test_touching_equal_things_are_told_apart():
    at = np.mgrid[:128, :128] + 0.5
    picture = np.full((128, 128, 3), 235, np.uint8)
    for x in (45, 82):
        picture[np.hypot(at[0] - 64, at[1] - x) < 19.2] = (40, 75, 220)
    assert shapes.oracle(picture, "two blue circles").passed


def test_the_judge_reads_a_thing_of_two_colours_as_one():
    red, orange = (np.array(shapes.render(f"a {c} cross", seed=3)) for c in ("red", "orange"))
    middle = int(np.nonzero(red[..., 2] < 128)[1].mean())
    mixed = np.concatenate([red[:, :middle], orange[:, middle:]], 1)
    assert shapes.judge(mixed, "a cross").passed
    assert shapes.judge(mixed, "a cross").things[0].shape == "cross"


def test_the_judge_measures_what_nothing_explains():
    clean = shapes.render("a red circle", 0)
    spoiled = np.asarray(clean).copy()
    spoiled[100:120, 5:25] = np.random.default_rng(0).integers(0, 255, (20, 20, 3))
    reading = shapes.judge(spoiled, "a red circle")
    assert shapes.judge(clean, "a red circle").artifact < 0.01
    assert reading.artifact > 0.015


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


def test_a_caption_with_odd_spacing_reads_the_same():
    picture = shapes.render("a ring", 4)
    assert shapes.judge(picture, " A  Ring. ").passed
    assert parse(" A  Ring. ") == parse("a ring")
