"""What people do to pipelines keeps working with a wrapped one."""

import numpy as np
import pytest
import tiny_families
import torch
from diffusers import (
    ControlNetModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image

from tts_verifier import BestOfN, wrap
from tts_verifier.testing import FakeVerifier

# diffusers' EulerDiscreteScheduler says this of itself with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def family(tmp_path):
    return tiny_families.FAMILIES["sd15"](tmp_path, steps=2)


def best(family, pipe=None, **told):
    """The best of two, which must be as two separate draws of the pipeline would be."""
    verified = wrap(pipe or family.pipe, FakeVerifier(), strategy=BestOfN(2))
    out = verified("a red circle", seed=1, **{**family.call, **told})
    assert [t.error for t in out.trials] == ["", ""]
    for trial in out.trials:
        generator = torch.Generator().manual_seed(trial.proposal.seed)
        bare = (pipe or family.pipe)("a red circle", generator=generator, **{**family.call, **told})
        near = np.asarray(trial.image.load(), int) - np.asarray(bare.images[0], int)
        assert np.abs(near).max() <= 1
    return np.asarray(out.images[0], int)


def test_schedulers_are_swapped(family):
    before = best(family)
    for kind in (EulerDiscreteScheduler, DPMSolverMultistepScheduler):
        wrap(family.pipe, FakeVerifier()).scheduler = kind.from_config(family.pipe.scheduler.config)
        assert type(family.pipe.scheduler) is kind
        assert not np.array_equal(best(family), before)


def test_the_vae_is_sliced_and_tiled(family):
    before = best(family)
    verified = wrap(family.pipe, FakeVerifier())
    verified.vae.enable_slicing()
    assert np.abs(best(family) - before).max() <= 1
    verified.vae.enable_tiling()
    best(family, height=32, width=32)


def test_offloading_hooks_stay(family):
    before = best(family)
    wrap(family.pipe, FakeVerifier()).enable_model_cpu_offload(device="cpu")
    assert np.abs(best(family) - before).max() <= 1
    assert hasattr(family.pipe.unet, "_hf_hook")


def test_attention_slicing_and_processors_stay(family):
    before = best(family)
    verified = wrap(family.pipe, FakeVerifier())
    verified.enable_attention_slicing()
    assert np.abs(best(family) - before).max() <= 1
    verified.unet.set_default_attn_processor()
    assert np.abs(best(family) - before).max() <= 1


def test_an_attention_backend_is_set(tmp_path):
    family = tiny_families.FAMILIES["flux"](tmp_path, steps=2)
    before = best(family)
    family.pipe.transformer.set_attention_backend("native")
    assert np.abs(best(family) - before).max() <= 1


@pytest.mark.slow
def test_a_compiled_denoiser_works(family):
    before = best(family)
    family.pipe.unet = torch.compile(family.pipe.unet, backend="eager")
    assert np.abs(best(family) - before).max() <= 1


def test_progress_bars_are_as_configured(family, capsys):
    verified = wrap(family.pipe, FakeVerifier(), strategy=BestOfN(1))
    verified("a", **family.call)
    assert capsys.readouterr().err == ""
    verified.set_progress_bar_config(disable=False, desc="drawing")
    verified("a", **family.call)
    assert "drawing" in capsys.readouterr().err


def test_a_controlnets_arguments_pass_through(family):
    parts = dict(family.pipe.components)
    net = ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(4, 8))
    # Its last layers start at zero, and would not be seen.
    for block in net.controlnet_down_blocks:
        torch.nn.init.normal_(block.weight, std=1.0)
    pipe = StableDiffusionControlNetPipeline(**parts, controlnet=net, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    grey = Image.new("RGB", (16, 16), (90, 90, 90))
    told = {"image": grey, "height": 16, "width": 16}
    on = best(family, pipe, controlnet_conditioning_scale=1.0, **told)
    off = best(family, pipe, controlnet_conditioning_scale=0.0, **told)
    assert not np.array_equal(on, off)


def test_a_refiner_searches_over_refinements_of_a_picture(tmp_path):
    family = tiny_families.FAMILIES["sdxl"](tmp_path)
    parts = {k: v for k, v in family.pipe.components.items() if k not in (
        "image_encoder", "feature_extractor")}  # fmt: skip
    refiner = StableDiffusionXLImg2ImgPipeline(**parts)
    refiner.set_progress_bar_config(disable=True)
    picture = wrap(family.pipe, FakeVerifier(), strategy=BestOfN(2))(
        "a red circle", seed=1, **family.call
    ).images[0]
    best(family, refiner, image=picture, strength=0.5)
