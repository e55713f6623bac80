import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForInpainting,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    PNDMScheduler,
)
from PIL import Image
from tiny_pipelines import as_parent, sd3, sd15

from tts_verifier.errors import CheckpointError, InputError, UnsupportedError
from tts_verifier.generators.diffusers import DiffusersGenerator, loading
from tts_verifier.runner import run
from tts_verifier.testing import FakeVerifier, check_generator
from tts_verifier.types import (
    CachedDrafts,
    Continue,
    Drafts,
    Draw,
    Job,
    Look,
    LowBand,
    Mask,
    Near,
    Prompt,
    Repaint,
    Rewritten,
    steps_heard,
)


def job(seed, text="a red circle"):
    return Job(Prompt(text, text), Draw(seed))


def pixels(samples):
    return [np.asarray(s.image) for s in samples]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def generator(pipe):
    return DiffusersGenerator(pipe, steps=3, guidance=4.0, batch_size=4)


def test_it_passes_the_conformance_checks_with_all_kinds(generator):
    assert generator.supports == {
        Draw, Continue, Repaint, Near, LowBand, Rewritten, Drafts, CachedDrafts,
    }  # fmt: skip
    check_generator(generator)


def test_a_proposal_gives_the_same_image_in_any_batch(generator):
    together = pixels(generator.generate([job(s) for s in range(6)]))
    alone = pixels(generator.generate([job(3)]))
    among = pixels(generator.generate([job(9, "blue"), job(8), job(3)]))
    assert np.array_equal(together[3], alone[0])
    assert np.array_equal(together[3], among[2])
    assert not np.array_equal(together[3], together[4])


def test_it_reports_its_steps_within_a_batch(generator):
    seen = []
    with steps_heard(lambda taken, total: seen.append((taken, total))):
        first = generator.generate([job(0), job(1)])[0]
        assert seen == [(1, 3), (2, 3), (3, 3)]
        seen.clear()
        parent = as_parent(first)
        whole = Mask.of(np.ones((16, 16), bool))
        generator.generate([Job(Prompt("x", "x"), Repaint(parent.id, whole, 2), (parent,))])
    assert seen[-1][0] == seen[-1][1] == len(seen)


def test_cost_counts_evaluations_and_vae_passes(generator):
    sample = generator.generate([job(0)])[0]
    assert sample.cost.network_evaluations == 6
    assert sample.cost.vae_passes == 1
    free = DiffusersGenerator(generator.pipe, steps=3, guidance=1.0, batch_size=2)
    assert free.generate([job(0)])[0].cost.network_evaluations == 3


def test_settings_hold_all_that_decides_an_image(generator):
    assert dict(generator.settings) == {
        "model": "",
        "pipeline": "StableDiffusion3Pipeline",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "dtype": "float32",
        "batch_size": 4,
        "num_inference_steps": 3,
        "guidance_scale": 4.0,
    }


def test_settings_hold_images_by_content_and_functions_by_name(pipe):
    def settings(grey, callback=as_parent):
        picture, tensor = Image.new("RGB", (4, 4), (grey,) * 3), torch.full((2,), grey)
        call = {"ip_adapter_image": picture, "joint_attention_kwargs": {"mask": tensor}}
        call |= {"callback_on_step_end": callback}
        return DiffusersGenerator(pipe, call=call).settings["call"]

    assert settings(1) == settings(1)
    assert settings(1) != settings(2)
    assert "tiny_pipelines.as_parent" in settings(1)
    assert "torch.float32" in settings(1, torch.float32)


def test_another_family_works_as_well(tmp_path):
    generator = DiffusersGenerator(sd15(tmp_path), steps=2, guidance=5.0, batch_size=2)
    sample = generator.generate([job(1)])[0]
    assert sample.image.size == (16, 16)
    assert sample.cost.network_evaluations == 4


def test_a_folder_without_a_third_text_encoder_loads(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = DiffusersGenerator(tmp_path, steps=3, guidance=4.0, batch_size=4, device="cpu")
    given = DiffusersGenerator(pipe, steps=3, guidance=4.0, batch_size=4)
    assert np.array_equal(*pixels([*loaded.generate([job(5)]), *given.generate([job(5)])]))
    assert loaded.settings["model"] == str(tmp_path)


def test_a_drawing_with_nan_is_an_error_and_spoils_no_other(generator, monkeypatch):
    decode = generator.pipe.vae.decode

    def spoiled(latents, **kwargs):
        (image,) = decode(latents, **kwargs)
        image[0, 0, 0, 0] = torch.nan
        return (image,)

    monkeypatch.setattr(generator.pipe.vae, "decode", spoiled)
    bad, good = generator.generate([job(0), job(1)])
    assert bad.image is None
    assert bad.error.startswith("The image of seed 0 has NaN or infinite pixels.")
    assert good.image is not None


def test_a_blanked_image_is_an_error(tmp_path, monkeypatch):
    generator = DiffusersGenerator(sd15(tmp_path), steps=1, batch_size=1)
    monkeypatch.setattr(
        generator.pipe, "run_safety_checker", lambda image, *_: (image, [True]), raising=True
    )
    assert "safety checker" in generator.generate([job(0)])[0].error


def test_a_look_is_refused(generator):
    with pytest.raises(UnsupportedError, match="StableDiffusion3Pipeline generates nothing"):
        generator.generate([Job(Prompt("0", "a"), Look("x"))])


class Unheard(DiffusionPipeline):
    """One step of a network, as no family of diffusers does it."""

    def __init__(self, unet, vae):
        super().__init__()
        self.register_modules(unet=unet, vae=vae)

    @torch.no_grad()
    def __call__(self, prompt, generator=None, output_type="pil"):
        noise = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in generator])
        texts = torch.zeros(len(prompt), 1, 16)
        latents = self.unet(noise, 1, texts).sample
        pictures = self.vae.decode(latents).sample.clamp(0, 1)
        return ImagePipelineOutput(pictures.permute(0, 2, 3, 1).numpy())


def test_an_unknown_pipeline_draws_and_does_nothing_else(tmp_path):
    parts = sd15(tmp_path)
    generator = DiffusersGenerator(Unheard(parts.unet, parts.vae), batch_size=2)
    assert generator.supports == {Draw, Rewritten}
    check_generator(generator)
    assert "Unheard has no inpainting sibling" in generator.lacks[Repaint]
    with pytest.raises(UnsupportedError, match=r"Unheard with NoneType .* takes no `latents`"):
        generator.generate([Job(Prompt("0", "a"), Draw(1, until=0.5))])


class Guarded(Unheard):
    """Its safety checker blanks every second image, and names that as DeepFloyd IF does."""

    def __call__(self, prompt, generator=None, output_type="pil"):
        out = super().__call__(prompt, generator, output_type)
        out.nsfw_detected = [row % 2 == 1 for row in range(len(prompt))]
        return out


def test_a_blanked_image_is_an_error_whatever_the_output_field_is_called(tmp_path):
    parts = sd15(tmp_path)
    generator = DiffusersGenerator(Guarded(parts.unet, parts.vae), batch_size=2)
    first, second = generator.generate([job(1), job(2)])
    assert (first.error, second.error) == ("", "The pipeline's safety checker blanked it.")


class Channels(Unheard):
    """Ignores the output type."""

    def __call__(self, prompt, generator=None, output_type="pil"):
        return ImagePipelineOutput(torch.zeros(len(prompt), 3, 16, 16))


def test_a_pipeline_whose_output_is_no_image_is_named(tmp_path):
    parts = sd15(tmp_path)
    generator = DiffusersGenerator(Channels(parts.unet, parts.vae), batch_size=1)
    with pytest.raises(UnsupportedError, match=r"ImagePipelineOutput has \(1, 3, 16, 16\)"):
        generator.generate([job(1)])


def test_a_rehearsal_leaves_the_global_random_state_alone(tmp_path):
    pipe = sd15(tmp_path)
    before = torch.get_rng_state()
    DiffusersGenerator(pipe, steps=4).generate([Job(Prompt("0", "a"), Draw(1, until=0.5))])
    assert torch.equal(torch.get_rng_state(), before)


def test_methods_that_a_user_replaced_stay_replaced(tmp_path):
    pipe, called = sd15(tmp_path), []
    own = {"encode_prompt": pipe.encode_prompt, "prepare_latents": pipe.prepare_latents}

    def counted(name):
        def replacement(*args, **kwargs):
            called.append(name)
            return own[name](*args, **kwargs)

        return replacement

    before = DiffusersGenerator(pipe, steps=4).generate([job(1)])
    replacements = {name: counted(name) for name in own}
    vars(pipe).update(replacements)
    after = DiffusersGenerator(pipe, steps=4).generate([job(1)])
    assert np.array_equal(*pixels([*before, *after]))
    near = Job(Prompt("0", "a"), Draw(2, noise=Near("p", 0.5)), (as_parent(after[0]),))
    jobs = [Job(Prompt("0", "a"), Draw(1, until=0.5)), near]
    assert [s.error for s in DiffusersGenerator(pipe, steps=4).generate(jobs)] == ["", ""]
    assert set(called) == set(own)
    assert all(vars(pipe)[name] is method for name, method in replacements.items())


def test_a_pipeline_without_prompts_is_refused(tmp_path):
    unconditional = DDPMPipeline(sd15(tmp_path).unet, DDPMScheduler())
    with pytest.raises(InputError, match="that of DDPMPipeline takes no prompt"):
        DiffusersGenerator(unconditional)


def test_an_argument_that_the_pipeline_does_not_take_is_refused(pipe):
    with pytest.raises(InputError, match="does not take cfg"):
        DiffusersGenerator(pipe, call={"cfg": 3})


def test_a_pipeline_that_repaints_may_be_named(pipe, tmp_path):
    AutoPipelineForInpainting.from_pipe(sd15(tmp_path)).save_pretrained(tmp_path / "fill")
    generator = DiffusersGenerator(pipe, inpaint=tmp_path / "fill", dtype="float32")
    assert generator.settings["inpaint"] == "StableDiffusionInpaintPipeline"
    assert Repaint in generator.supports


@pytest.mark.parametrize("name", ["latents", "output_type", "generator"])
def test_an_argument_that_belongs_to_a_candidate_is_refused(pipe, name):
    with pytest.raises(InputError, match=f"call must leave {name} to the search"):
        DiffusersGenerator(pipe, call={name: None})


def test_another_call_shares_what_is_known_of_the_pipeline(pipe):
    generator = DiffusersGenerator(pipe, steps=3, guidance=4.0, batch_size=2)
    other = generator.with_call({"num_inference_steps": 2})
    assert other.settings == {
        **{k: v for k, v in generator.settings.items() if k != "guidance_scale"},
        "num_inference_steps": 2,
    }
    assert generator.settings["num_inference_steps"] == 3
    assert other.traits is generator.traits
    assert other.prompt_cache is generator.prompt_cache
    half = Job(Prompt("0", "a"), Draw(1, until=0.5))
    # The number of steps of a part is found for each call.
    assert [g.generate([half])[0].progress for g in (generator, other)] == [2 / 3, 1 / 2]


def test_another_call_sees_a_scheduler_that_was_swapped(tmp_path):
    pipe = sd15(tmp_path)
    generator = DiffusersGenerator(pipe, steps=2)
    assert Continue in generator.supports
    pipe.scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    other = generator.with_call({})
    assert Continue not in other.supports
    assert other.settings["scheduler"] == "PNDMScheduler"


@pytest.mark.parametrize("length", [10**6, 0, "x", 1.5])
def test_lengths_that_no_text_has_are_refused(tmp_path, length):
    with pytest.raises(InputError, match="max_sequence_length must be at"):
        DiffusersGenerator(sd3(tmp_path), call={"max_sequence_length": length})


@pytest.mark.parametrize("name", ["steps", "batch_size"])
def test_numbers_below_one_are_refused(pipe, name):
    with pytest.raises(InputError, match=f"{name} must be at least 1, got 0"):
        DiffusersGenerator(pipe, **{name: 0})


@pytest.mark.parametrize("argument", ["steps", "batch_size", "height", "width"])
@pytest.mark.parametrize("value", [10**12, -1, True, 1.5, "8", float("nan")])
def test_sizes_that_no_pipeline_has_are_refused(generator, argument, value):
    with pytest.raises(InputError, match=f"{argument} must be at (least 1|most 65536), got"):
        DiffusersGenerator(generator.pipe, **{argument: value})


def test_a_folder_that_holds_no_pipeline_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="No pipeline could be loaded from"):
        DiffusersGenerator(tmp_path / "absent")


def test_missing_bundled_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "BUNDLED_PIPELINE", tmp_path)
    with pytest.raises(CheckpointError, match="bundled generator's weights"):
        DiffusersGenerator("shapes")


@pytest.mark.parametrize("family", [sd3, sd15])
def test_a_negative_prompt_is_every_candidates(tmp_path, family):
    pipe = family(tmp_path)
    blue = DiffusersGenerator(pipe, steps=2, guidance=5.0, batch_size=2, negative_prompt="blue")
    plain = DiffusersGenerator(pipe, steps=2, guidance=5.0, batch_size=2)
    assert not np.array_equal(*pixels([*blue.generate([job(1)]), *plain.generate([job(1)])]))
    assert blue.settings["negative_prompt"] == "blue"
    assert blue.generate([Job(Prompt("0", "a"), Draw(1, until=0.5))])[0].progress == 0.5


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
            for path in (tmp_path / "run" / "states").glob("*.npz"):
                path.unlink()
            return super().propose(task, history)

    in_memory = run(prompts, generator, FakeVerifier(), Everything())
    from_files = run(prompts, generator, FakeVerifier(), Forgetful(), folder=tmp_path / "run")
    assert [t.error for t in in_memory.trials] == [""] * 16
    assert [t.id for t in in_memory.trials] == [t.id for t in from_files.trials]
    for one, other in zip(in_memory.trials, from_files.trials, strict=True):
        assert np.array_equal(np.asarray(one.image.load()), np.asarray(other.image.load()))
