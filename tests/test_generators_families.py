"""Every kind of proposal with other families: packed latents, two encoders, no callback."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_pipelines import as_parent, pixels, sd3, text_config, tokenizer, vae
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.runner import run
from tts_verifier.testing import FakeVerifier, check_generator
from tts_verifier.types import Continue, Draw, Job, LowBand, Mask, Near, Prompt, Repaint

# diffusers' EulerDiscreteScheduler says this of itself with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT = Prompt("0", "a red circle")


def t5(words):
    config = T5Config(vocab_size=words, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def flux(words):
    pipe = FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=[4, 4, 8],
            guidance_embeds=True,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(4, shift=0.5),
        text_encoder=CLIPTextModel(text_config(len(words))),
        tokenizer=words,
        text_encoder_2=t5(len(words)),
        tokenizer_2=words,
    )
    return pipe, {"height": 32, "width": 32, "call": {"max_sequence_length": 16}}


def sdxl(words):
    config = text_config(len(words))
    pipe = StableDiffusionXLPipeline(
        vae=vae(4),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=words,
        tokenizer_2=words,
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
            use_linear_projection=True,
        ),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1),
    )
    return pipe, {}


def pixart(words):
    pipe = PixArtSigmaPipeline(
        tokenizer=words,
        text_encoder=t5(len(words)),
        vae=vae(4),
        transformer=PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=16,
            in_channels=4,
            cross_attention_dim=16,
            out_channels=8,
            norm_type="ada_norm_single",
            use_additional_conditions=False,
        ),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
    )
    call = {"max_sequence_length": 16, "use_resolution_binning": False, "clean_caption": False}
    return pipe, {"height": 16, "width": 16, "call": call}


@pytest.fixture(scope="module", params=[flux, sdxl, pixart])
def generator(request, tmp_path_factory):
    torch.manual_seed(0)
    pipe, settings = request.param(tokenizer(tmp_path_factory.mktemp("words")))
    pipe.set_progress_bar_config(disable=True)
    return DiffusersGenerator(pipe, steps=4, guidance=3.0, batch_size=2, **settings)


def draw(generator, proposal, parent=None):
    ancestors = (as_parent(parent),) if parent else ()
    return generator.generate([Job(PROMPT, proposal, ancestors)])[0]


def test_it_passes_the_conformance_checks(generator):
    check_generator(generator)


def test_it_does_all_kinds(generator):
    assert generator.supports == {Draw, Continue, Repaint}


def test_a_drawing_carried_on_is_the_uninterrupted_one(generator):
    whole = draw(generator, Draw(1))
    half = draw(generator, Draw(1, until=0.5))
    rest = draw(generator, Continue("parent", 1.0, 2), half)
    assert np.abs(pixels(rest) - pixels(whole)).max() <= 1
    total = half.cost.network_evaluations + rest.cost.network_evaluations
    assert total == whole.cost.network_evaluations


def test_near_noise_with_no_radius_to_speak_of_is_the_parents_picture(generator):
    whole = draw(generator, Draw(1))
    near = draw(generator, Draw(2, noise=Near("parent", 1e-7)), whole)
    assert np.abs(pixels(near) - pixels(whole)).max() <= 1


def test_repainting_keeps_what_is_not_masked(generator):
    whole = draw(generator, Draw(1))
    left = np.zeros(pixels(whole).shape[:2], np.bool_)
    left[:, :6] = True
    after = draw(generator, Repaint("parent", Mask.of(left), 3, 0.7), whole)
    assert np.array_equal(pixels(after)[~left], pixels(whole)[~left])
    assert not np.array_equal(pixels(after)[left], pixels(whole)[left])


def test_half_precision_resumes_as_well(tmp_path):
    pipe = sd3(tmp_path).to(torch.bfloat16)
    generator = DiffusersGenerator(pipe, steps=4, guidance=3.0, batch_size=2)
    whole, half = draw(generator, Draw(1)), draw(generator, Draw(1, until=0.5))
    rest = draw(generator, Continue("parent", 1.0, 2), half)
    assert np.array_equal(pixels(rest), pixels(whole))
    shaken = draw(generator, Continue("parent", 1.0, 2, renoise=0.25, eta=0.5), half)
    assert not np.array_equal(pixels(shaken), pixels(whole))


class Everything:
    """One round of each kind."""

    needs = frozenset({Draw, Continue, Repaint})

    def propose(self, task, history):
        left = Mask.of(np.broadcast_to(np.arange(16) < 8, (16, 16)))
        ids = [trial.id for trial in history]
        band = LowBand((0.5,) * 16 * 16, 1)
        rounds = [
            lambda: [Draw(1, until=0.5), Draw(2)],
            lambda: [Continue(ids[0], 0.75, 3, eta=0.3), Draw(4, noise=Near(ids[1], 0.2))],
            lambda: [Continue(ids[2], 1.0, 5, renoise=0.25), Repaint(ids[1], left, 6)],
            lambda: [Draw(7, noise=Near(ids[3], 0.5)), Draw(8, noise=band)],
        ]
        done = len(ids) // 2
        return rounds[done]() if done < len(rounds) else []


def test_a_run_with_every_kind_is_the_same_with_and_without_states(tmp_path):
    """Without a log states stay in memory; with one they are files, here deleted midway."""
    generator = DiffusersGenerator(sd3(tmp_path / "sd3"), steps=4, batch_size=2)
    prompts = ["a red circle", "a blue square"]

    class Forgetful(Everything):
        def propose(self, task, history):
            for path in (tmp_path / "run").rglob("*.npz"):
                path.unlink()
            return super().propose(task, history)

    kept = run(prompts, generator, FakeVerifier(), Everything())
    lost = run(prompts, generator, FakeVerifier(), Forgetful(), folder=tmp_path / "run")
    assert [t.error for t in kept.trials] == [""] * 16
    assert [t.id for t in kept.trials] == [t.id for t in lost.trials]
    for one, other in zip(kept.trials, lost.trials, strict=True):
        assert np.array_equal(np.asarray(one.image.load()), np.asarray(other.image.load()))
