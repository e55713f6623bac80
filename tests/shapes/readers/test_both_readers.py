import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from tts_verifier import shapes
from tts_verifier.shapes.captions import random_specs
from tts_verifier.shapes.flaws import render_flawed
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.shapes.readers.judge import read_by_fitting
from tts_verifier.shapes.readers.oracle import read_by_geometry

READERS = [read_by_geometry, read_by_fitting]


def flawed(n, seed):
    specs = random_specs(n, random.Random(seed))
    made = render_flawed(specs, torch.Generator().manual_seed(seed), artifact=0.0)
    pixels = (made.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return specs, pixels, made.readings


@pytest.mark.parametrize("count", [35, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("read", READERS)
def test_a_reader_agrees_with_the_truth_on_fresh_renders(read, count):
    specs, pixels, truth = flawed(count, 21)
    found = [read(p, s) for p, s in zip(pixels, specs, strict=True)]
    agree = [f.passed == t.passed for f, t in zip(found, truth, strict=True)]
    assert np.mean(agree) >= 0.98
    close = [abs(f.score - t.score) < 1e-6 for f, t in zip(found, truth, strict=True)]
    assert np.mean(close) >= 0.97


@pytest.mark.parametrize("count", [25, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("read", READERS)
def test_a_reader_bears_blur_noise_and_a_tint(read, count):
    specs, pixels, truth = flawed(count, 22)
    rng = np.random.default_rng(0)
    agree = []
    for image, spec, right in zip(pixels, specs, truth, strict=True):
        soft = ndimage.gaussian_filter(image.astype(float), (1.2, 1.2, 0))
        soft += rng.normal(0, 4, soft.shape) + rng.uniform(-12, 12, 3)
        found = read(np.clip(soft, 0, 255).astype(np.uint8), spec)
        agree.append(found.passed == right.passed)
    assert np.mean(agree) >= 0.95


def test_an_empty_image_has_nothing():
    blank = Image.new("RGB", (128, 128), (230, 230, 235))
    for read in (shapes.oracle, shapes.judge):
        reading = read(blank, "a red circle")
        assert reading.things == ()
        assert reading.boxes == ()
        assert not reading.passed
        assert reading.score == 0.25  # only "nothing else" holds


@pytest.mark.parametrize("read", [shapes.oracle, shapes.judge])
def test_a_pale_thing_of_mixed_colour_is_seen_once(read):
    at = np.mgrid[:128, :128] + 0.5
    disc = np.hypot(at[0] - 64, at[1] - 50) < 22
    image = np.full((128, 128, 3), 235.0)
    blue = np.where(at[1] < 50, 0.75, 0.5)[..., None]
    image = np.where(disc[..., None], 235 + blue * (np.array((40, 75, 220)) - 235), image)
    found = read(image.astype(np.uint8), "a blue circle").things
    assert [(t.shape, t.colour) for t in found] == [("circle", "blue")]


@pytest.mark.parametrize("read", [shapes.oracle, shapes.judge])
def test_a_thick_ring_is_a_ring(read):
    at = np.mgrid[:128, :128] + 0.5
    away = np.hypot(at[0] - 64, at[1] - 50)
    image = np.full((128, 128, 3), 235, np.uint8)
    image[(away < 24) & (away > 9)] = (222, 40, 40)
    assert read(image, "a red ring").passed


def test_a_caption_with_odd_spacing_reads_the_same():
    image = shapes.render("a ring", 4)
    assert shapes.judge(image, " A  Ring. ").passed
    assert parse_caption(" A  Ring. ") == parse_caption("a ring")
