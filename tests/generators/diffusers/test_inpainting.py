"""The masked part of an image is generated anew, the rest stays exactly."""

import logging
import warnings

import numpy as np
import pytest
import tiny_checkpoints
import torch
from diffusers import (
    AutoPipelineForInpainting,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from tiny_pipelines import as_parent, pixels, sd3, sd15

from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.generators.diffusers import DiffusersGenerator, inpainting
from tts_verifier.testing import check_generator
from tts_verifier.types import Continue, Draw, Job, Mask, Prompt, Repaint

PROMPT = Prompt("0", "a red circle")
LEFT = np.arange(16)[None, :] + np.zeros((16, 1)) < 6
MASK = Mask.of(LEFT)


@pytest.fixture(scope="module", params=[sd3, sd15])
def generator(request, tmp_path_factory):
    pipe = request.param(tmp_path_factory.mktemp("pipe"))
    return DiffusersGenerator(pipe, steps=4, guidance=3.0, batch_size=2)


@pytest.fixture(scope="module")
def parent(generator):
    return generator.generate([Job(PROMPT, Draw(1))])[0]


def repainted(generator, parent, *proposals):
    trial = as_parent(parent)
    return generator.generate([Job(PROMPT, p, (trial,)) for p in proposals])


def test_pixels_outside_the_mask_are_the_parents(generator, parent):
    for strength in (0.3, 1.0):
        proposal = Repaint("parent", MASK, 5, strength)
        after, before = pixels(repainted(generator, parent, proposal)[0]), pixels(parent)
        assert np.array_equal(after[~LEFT], before[~LEFT])
        assert not np.array_equal(after[LEFT], before[LEFT])


def test_a_proposal_gives_the_same_image_in_any_batch(generator, parent):
    wanted = Repaint("parent", MASK, 5, 0.6)
    alone = repainted(generator, parent, wanted)[0]
    others = [Repaint("parent", Mask.of(~LEFT), 6, 0.6), Repaint("parent", MASK, 7)]
    among = repainted(generator, parent, *others, wanted)[2]
    assert np.array_equal(pixels(alone), pixels(among))
    other = repainted(generator, parent, Repaint("parent", MASK, 6, 0.6))[0]
    assert not np.array_equal(pixels(alone), pixels(other))


def test_evaluations_follow_the_strength_and_encodings_count(generator, parent):
    half, whole = repainted(
        generator, parent, Repaint("parent", MASK, 5, 0.5), Repaint("parent", MASK, 5)
    )
    assert (half.cost.network_evaluations, whole.cost.network_evaluations) == (4, 8)
    # A sibling encodes the masked image as well, whether or not its weights look at it.
    assert half.cost.vae_passes == 3 - inpainting.repaints_by_blending(generator.pipe)
    assert half.progress == 1
    assert half.state is None


def test_a_repainted_image_is_decoded_like_any_other(tmp_path, monkeypatch):
    """Guards against the VAE's shift, which SD 3's inpainting class in diffusers 0.42 forgets."""
    pipe = sd3(tmp_path)

    def perfect(hidden_states, timestep, **_):
        return ((hidden_states - 0.25) / (timestep[0] / 1000),)

    monkeypatch.setattr(pipe.transformer, "forward", perfect)
    generator = DiffusersGenerator(pipe, steps=2, guidance=1.0, batch_size=1)
    parent = generator.generate([Job(PROMPT, Draw(1))])[0]
    everything = Mask.of(np.ones((16, 16), np.bool_))
    after = repainted(generator, parent, Repaint("parent", everything, 5))[0]
    assert np.abs(pixels(after) - pixels(parent)).max() <= 1


def test_the_sibling_shares_weights_and_keeps_the_dtype(tmp_path):
    pipe = sd3(tmp_path).to(torch.bfloat16)
    other = inpainting.inpainting_pipeline(pipe)
    assert type(other).__name__ == "StableDiffusion3InpaintPipeline"
    assert other.transformer is pipe.transformer
    assert other.vae is pipe.vae
    assert other.scheduler is not pipe.scheduler
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.bfloat16}


def test_making_the_sibling_logs_nothing_again(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    pipe = StableDiffusionPipeline(**sd15(tmp_path).components)
    assert "disabled the safety checker" in caplog.text
    caplog.clear()
    inpainting.inpainting_pipeline(pipe)
    assert caplog.text == ""


def test_making_the_sibling_leaves_nothing_to_warn_of(tmp_path):
    pipe = sd15(tmp_path)
    pipe.scheduler = PNDMScheduler(steps_offset=0, skip_prk_steps=False)
    before = list(warnings.filters), logging.getLogger("diffusers").level
    # pytest makes errors of warnings.
    sibling = inpainting.inpainting_pipeline(pipe)
    assert (list(warnings.filters), logging.getLogger("diffusers").level) == before
    assert sibling.scheduler.config.steps_offset == 1
    assert sibling.scheduler.config.skip_prk_steps
    assert pipe.scheduler.config.steps_offset == 0


def test_the_sibling_is_made_only_to_repaint(tmp_path, monkeypatch):
    made, from_pipe = [], AutoPipelineForInpainting.from_pipe

    def watched(pipe, **kwargs):
        made.append(pipe)
        return from_pipe(pipe, **kwargs)

    monkeypatch.setattr(AutoPipelineForInpainting, "from_pipe", watched)
    generator = DiffusersGenerator(sd15(tmp_path), steps=2, batch_size=1)
    assert Repaint in generator.supports
    parent = generator.generate([Job(PROMPT, Draw(1))])[0]
    assert made == []
    repainted(generator, parent, Repaint("parent", MASK, 5))
    assert made == [generator.pipe]


def test_thin_masks_grow_to_whole_latent_cells():
    thin = np.zeros((8, 8), np.bool_)
    thin[3, 5:7] = True
    assert inpainting.latent_cells(Mask.of(thin), 4).tolist() == [[False, True], [False, False]]
    uneven = np.zeros((5, 7), np.bool_)
    uneven[4, 6] = True
    assert inpainting.latent_cells(Mask.of(uneven), 4).tolist() == [[False, False], [False, True]]
    corner = np.zeros((5, 7), np.bool_)
    corner[4:, 4:] = True
    assert inpainting.grown_to_cells(Mask.of(uneven), 4) == Mask.of(corner)


def test_a_thin_mask_changes_the_cells_that_it_touches(generator, parent):
    thin = np.zeros((16, 16), np.bool_)
    thin[:, 3] = True
    cell = generator.pipe.image_processor.config.vae_scale_factor
    repainted_cells = np.zeros((16, 16), np.bool_)
    repainted_cells[:, 3 // cell * cell : (3 // cell + 1) * cell] = True
    after = repainted(generator, parent, Repaint("parent", Mask.of(thin), 5))[0]
    assert not np.array_equal(pixels(after)[:, 3], pixels(parent)[:, 3])
    assert np.array_equal(pixels(after)[~repainted_cells], pixels(parent)[~repainted_cells])


@pytest.mark.parametrize(
    ("mask", "strength", "rule"),
    [
        (Mask.of(np.ones((8, 8), np.bool_)), 1.0, "must have the size of the image, got 8x8"),
        (Mask.of(np.zeros((16, 16), np.bool_)), 1.0, "got an empty one"),
        (MASK, 0.0, r"strength must be in \(0, 1\], got 0.0"),
    ],
)
def test_what_cannot_be_repainted_is_refused(generator, parent, mask, strength, rule):
    with pytest.raises(InputError, match=rule):
        repainted(generator, parent, Repaint("parent", mask, 5, strength))


def test_a_parent_without_a_image_is_refused(generator):
    with pytest.raises(InputError, match="needs its parent's image"):
        generator.generate([Job(PROMPT, Repaint("parent", MASK, 5))])


def test_a_repaint_that_came_out_as_nan_is_an_error(generator, parent, monkeypatch):
    decode = generator.pipe.vae.decode

    def spoiled(latents, **kwargs):
        (image,) = decode(latents, **kwargs)
        return (image * torch.nan,)

    monkeypatch.setattr(generator.pipe.vae, "decode", spoiled)
    sample = repainted(generator, parent, Repaint("parent", MASK, 5))[0]
    assert sample.image is None
    assert "NaN" in sample.error


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_blending_is_what_the_sibling_does(tmp_path, strength, monkeypatch):
    pipe = sd3(tmp_path)
    monkeypatch.setattr(
        "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution.sample",
        lambda self, generator=None: self.mode(),
    )
    generator = DiffusersGenerator(pipe, steps=5, guidance=3.0, batch_size=1)
    parent = generator.generate([Job(PROMPT, Draw(1))])[0]
    job = Job(PROMPT, Repaint("parent", MASK, 5, strength), (as_parent(parent),))
    ends = []
    decode = pipe.vae.decode

    def watched(latents, **kwargs):
        ends.append(latents)
        return decode(latents, **kwargs)

    monkeypatch.setattr(pipe.vae, "decode", watched)
    generator.generate([job])
    other = inpainting.inpainting_pipeline(pipe)
    arguments = inpainting.inpainting_arguments(other, [inpainting.repaint_source(job)])
    call = {**generator.pipeline_arguments([job]), **arguments}
    wanted = other(output_type="latent", **call).images
    config = pipe.vae.config
    assert torch.allclose(
        (ends[0] - config.shift_factor) * config.scaling_factor, wanted, atol=1e-4
    )


def test_weights_that_the_sibling_does_not_know_are_repainted_too(tmp_path):
    generator = DiffusersGenerator(sd3(tmp_path, channels=4), steps=2, batch_size=1)
    check_generator(generator)
    assert generator.supports >= {Draw, Continue, Repaint}


def test_a_image_of_another_size_is_refused_where_the_pipeline_blends(tmp_path):
    pipe = sd3(tmp_path)
    small = DiffusersGenerator(pipe, steps=2, batch_size=1, height=12, width=12)
    parent = small.generate([Job(PROMPT, Draw(1))])[0]
    everything = Mask.of(np.ones((12, 12), np.bool_))
    assert repainted(small, parent, Repaint("parent", everything, 5))[0].image.size == (12, 12)
    large = DiffusersGenerator(pipe, steps=2, batch_size=1)
    with pytest.raises(InputError, match=r"generates latents of shape .* an image of 12x12 has"):
        repainted(large, parent, Repaint("parent", everything, 5))


def test_blending_needs_a_schedule_that_can_be_cut(tmp_path):
    pipe = sd3(tmp_path)
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    generator = DiffusersGenerator(pipe, steps=2, batch_size=1)
    assert generator.supports.isdisjoint({Continue, Repaint})
    with pytest.raises(UnsupportedError, match="FlowMatchHeunDiscreteScheduler cannot be resumed"):
        generator.generate([Job(PROMPT, Repaint("parent", MASK, 5))])


def test_a_pipeline_without_a_sibling_is_refused_by_name(tmp_path):
    class Lonely(type(sd15(tmp_path))):
        pass

    pipe = Lonely(**sd15(tmp_path).components, requires_safety_checker=False)
    assert "Lonely has no inpainting sibling" in inpainting.inpainting_problem(pipe)
    with pytest.raises(UnsupportedError, match="Lonely has no inpainting sibling"):
        inpainting.inpainting_pipeline(pipe)


def test_a_pipeline_that_lacks_a_component_of_the_sibling_is_refused_by_name():
    bare = type("StableDiffusionXLPipeline", (), {})()
    why = inpainting.inpainting_problem(bare)
    assert "(StableDiffusionXLInpaintPipeline needs vae, unet, scheduler)" in why


def test_what_repaints_must_take_image_mask_and_strength(tmp_path):
    pipe = sd15(tmp_path)
    why = DiffusersGenerator(pipe, inpaint=pipe).lacks[Repaint]
    assert why == "StableDiffusionPipeline takes no image, mask_image, strength"


def test_a_sibling_that_takes_no_strength_is_refused(tmp_path):
    pipe = tiny_checkpoints.CHECKPOINTS["kandinsky22"](tmp_path).pipe
    why = inpainting.inpainting_problem(pipe)
    assert "serves no strategy: KandinskyV22InpaintCombinedPipeline takes no strength" in why


def test_a_pipeline_that_the_user_gives_repaints(tmp_path):
    pipe = sd15(tmp_path)
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    fill = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    fill.set_progress_bar_config(disable=True)
    own = DiffusersGenerator(pipe, steps=4, guidance=3.0, batch_size=2)
    other = DiffusersGenerator(pipe, steps=4, guidance=3.0, batch_size=2, inpaint=fill)
    assert other.settings["inpaint"] == "StableDiffusionInpaintPipeline"
    parent = own.generate([Job(PROMPT, Draw(1))])[0]
    proposal = Repaint("parent", MASK, 5, 0.6)
    first, second = (repainted(g, parent, proposal)[0] for g in (own, other))
    assert np.array_equal(pixels(first), pixels(second))
    assert first.cost.network_evaluations == second.cost.network_evaluations > 0


def test_a_pipeline_without_a_sibling_repaints_with_a_given_one(tmp_path):
    class Lonely(type(sd15(tmp_path))):
        pass

    fill = AutoPipelineForInpainting.from_pipe(sd15(tmp_path))
    pipe = Lonely(**sd15(tmp_path).components, requires_safety_checker=False)
    assert Repaint in DiffusersGenerator(pipe, inpaint=fill).supports
    assert Repaint not in DiffusersGenerator(pipe).supports
