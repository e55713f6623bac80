"""Initial noise as a function of a proposal and its ancestors."""

import math

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from tiny_pipelines import as_parent, pixels, sd3, sd15

from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.generators.diffusers import DiffusersGenerator, noise
from tts_verifier.generators.diffusers.hooks import denoiser_of
from tts_verifier.types import Continue, Draw, Job, LowBand, Near, Prompt, Sample

PROMPT = Prompt("0", "a red circle")
CALL = {"prompt": [""], "num_inference_steps": 3}
BAND = LowBand(tuple(float(i) for i in range(4 * 4 * 4)), 1)


@pytest.fixture(scope="module", params=[sd3, sd15])
def pipe(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("pipe"))


@pytest.fixture(scope="module")
def rehearsal(pipe):
    return noise.rehearse(pipe, CALL)


def trial(draw):
    return as_parent(Sample(Job(PROMPT, draw), None))


def test_rehearsed_noise_is_the_pipelines_own_bit_for_bit(pipe, rehearsal):
    rows = [rehearsal.initial_noise(Draw(seed), ()) for seed in (1, 2)]
    call = {**CALL, "prompt": ["a", "b"], "output_type": "latent"}
    from_latents = pipe(latents=torch.cat(rows), **call).images
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    assert torch.equal(from_latents, pipe(generator=seeds, **call).images)


def test_a_rehearsal_evaluates_nothing_and_leaves_nothing(pipe, rehearsal):
    assert rehearsal.steps == 3
    assert "prepare_latents" not in vars(pipe)
    assert not denoiser_of(pipe)._forward_pre_hooks


def test_near_noise_mixes_the_parents_with_fresh_noise(rehearsal):
    old, fresh = rehearsal.initial_noise(Draw(1), ()), rehearsal.initial_noise(Draw(2), ())
    near = rehearsal.initial_noise(Draw(2, noise=Near("parent", 0.6)), (trial(Draw(1)),))
    torch.testing.assert_close(near, 0.8 * old + 0.6 * fresh)
    forgotten = rehearsal.initial_noise(Draw(2, noise=Near("parent", 1.0)), (trial(Draw(1)),))
    torch.testing.assert_close(forgotten, fresh)


def test_a_parents_noise_is_rebuilt_from_its_own_ancestors(rehearsal):
    child = Draw(2, noise=Near("root", 0.5))
    line = (trial(child), trial(Draw(1)))
    grandchild = rehearsal.initial_noise(Draw(3, noise=Near("child", 0.6)), line)
    expected = 0.8 * rehearsal.initial_noise(child, line[1:]) + 0.6 * rehearsal.initial_noise(
        Draw(3), ()
    )
    torch.testing.assert_close(grandchild, expected)


def test_a_low_band_is_what_orthonormal_haar_steps_find(tmp_path):
    rehearsal = noise.rehearse(sd15(tmp_path), CALL)
    plain, banded = (
        rehearsal.initial_noise(Draw(1), ()),
        rehearsal.initial_noise(Draw(1, noise=BAND), ()),
    )

    def haar(x):
        a, b, c, d = (x[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
        return [(a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2]

    low, *high = haar(banded)
    torch.testing.assert_close(low.flatten(), torch.tensor(BAND.coefficients))
    for band, own in zip(high, haar(plain)[1:], strict=True):
        torch.testing.assert_close(band, own)


def test_two_haar_steps_keep_a_band_of_half_the_size(tmp_path):
    rehearsal = noise.rehearse(sd15(tmp_path), CALL)
    banded = rehearsal.initial_noise(Draw(1, noise=LowBand((8.0,) * 16, 2)), ())
    assert banded.shape == (1, 4, 8, 8)
    assert float(banded.mean()) == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize(
    "band", [LowBand((1.0,) * 3, 1), LowBand((1.0,) * 64, 0), LowBand((), 4)], ids=str
)
def test_a_band_that_does_not_fit_is_refused(tmp_path, band):
    rehearsal = noise.rehearse(sd15(tmp_path), CALL)
    with pytest.raises(InputError, match=r"A low band of level . has .* coefficients"):
        rehearsal.initial_noise(Draw(1, noise=band), ())


@pytest.mark.parametrize(
    ("parent", "radius"), [(Continue("x", 1.0, 2), 0.5), (Draw(1), 0.0), (Draw(1), math.nan)]
)
def test_near_a_parent_without_noise_is_refused(rehearsal, parent, radius):
    with pytest.raises(InputError, match="Near needs a parent that was generated from noise"):
        rehearsal.initial_noise(Draw(2, noise=Near("p", radius)), (trial(parent),))


@pytest.mark.parametrize("kind", [Near("parent", 0.3), BAND])
def test_a_proposal_gives_the_same_image_in_any_batch(tmp_path, kind):
    generator = DiffusersGenerator(sd15(tmp_path), steps=3, batch_size=2)
    job = Job(PROMPT, Draw(2, noise=kind), (trial(Draw(1)),) if kind is not BAND else ())
    alone = generator.generate([job])[0]
    again = generator.generate([Job(PROMPT, Draw(8)), job, Job(PROMPT, Draw(9, until=0.5)), job])
    assert np.array_equal(pixels(alone), pixels(again[1]))
    assert np.array_equal(pixels(alone), pixels(again[3]))
    plain = generator.generate([Job(PROMPT, Draw(2))])[0]
    assert not np.array_equal(pixels(alone), pixels(plain))
    assert alone.cost.network_evaluations == plain.cost.network_evaluations == 6


def test_a_drawing_from_given_noise_stops_and_goes_on(tmp_path):
    generator = DiffusersGenerator(sd3(tmp_path), steps=4, batch_size=1)
    near, line = Near("root", 0.3), (trial(Draw(1)),)
    whole = generator.generate([Job(PROMPT, Draw(2, noise=near), line)])[0]
    half = generator.generate([Job(PROMPT, Draw(2, until=0.5, noise=near), line)])[0]
    rest = Job(PROMPT, Continue("parent", 1.0, 5), (as_parent(half), *line))
    assert np.array_equal(pixels(whole), pixels(generator.generate([rest])[0]))


def test_near_works_with_a_scheduler_that_cannot_be_resumed(tmp_path):
    pipe = sd15(tmp_path)
    pipe.scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    generator = DiffusersGenerator(pipe, steps=4, batch_size=1)
    same = Job(PROMPT, Draw(1, noise=Near("parent", 1e-7)), (trial(Draw(1)),))
    samples = generator.generate([same, Job(PROMPT, Draw(1))])
    assert np.abs(pixels(samples[0]) - pixels(samples[1])).max() <= 1


def test_a_pipeline_that_takes_no_latents_is_refused_by_name(tmp_path, monkeypatch):
    pipe = sd15(tmp_path)
    monkeypatch.setattr(type(pipe), "__call__", lambda self, prompt: None)
    with pytest.raises(UnsupportedError, match="generates from its own noise only"):
        noise.rehearse(pipe, {})


def test_packed_latents_have_no_low_band(rehearsal, monkeypatch):
    monkeypatch.setattr(
        rehearsal.pipe, "prepare_latents", lambda **_: (torch.zeros(1, 16, 16), None)
    )
    with pytest.raises(UnsupportedError, match="packs its latents"):
        rehearsal.initial_noise(Draw(1, noise=BAND), ())
