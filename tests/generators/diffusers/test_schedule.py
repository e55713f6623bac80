"""Candidates that stop early, are previewed, resumed, taken back and given fresh noise."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from cases import mostly_slow
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from tiny_pipelines import as_parent, pixels, sd3, sd15

from tts_verifier.errors import InputError, RunWarning, UnsupportedError
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.generators.diffusers.schedule import (
    noise_levels,
    resume_problem,
    sample_forward_kernel,
)
from tts_verifier.types import Continue, Draw, Job, Prompt, Trial

# With numpy 2, diffusers' EulerDiscreteScheduler causes this warning.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT = Prompt("0", "a red circle")
SCHEDULERS = {
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow, Karras": FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True, shift_terminal=0.1),
    "flow, dynamic": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    "DDIM": DDIMScheduler(steps_offset=1, clip_sample=False),
    "DDIM, trailing v": DDIMScheduler(
        clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction"
    ),
    "Euler": EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1),
}


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipes")
    return {"sd3": sd3(folder / "sd3"), "sd15": sd15(folder / "sd15")}


def make(pipes, name="flow", **settings):
    pipe = pipes["sd3" if name.startswith("flow") else "sd15"]
    pipe.scheduler = SCHEDULERS[name]
    return DiffusersGenerator(pipe, **{"steps": 6, "guidance": 3.0, "batch_size": 2, **settings})


def draw(generator, *proposals, parent=None):
    ancestors = (as_parent(parent),) if parent else ()
    return generator.generate([Job(PROMPT, p, ancestors) for p in proposals])


def latents(generator, seed):
    """The final latents of an uninterrupted call of the pipeline."""
    call = {**generator.pipeline_arguments([Job(PROMPT, Draw(seed))] * 2), "output_type": "latent"}
    return generator.pipe(**call).images[0].numpy()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_image_made_in_three_parts_is_the_uninterrupted_one(pipes, name):
    generator = make(pipes, name)
    whole = draw(generator, Draw(5))[0]
    part = draw(generator, Draw(5, until=1 / 3))[0]
    assert part.progress == pytest.approx(1 / 3)
    part = draw(generator, Continue("parent", 2 / 3, 8), parent=part)[0]
    assert part.progress == pytest.approx(2 / 3)
    last = draw(generator, Continue("parent", 1.0, 9), parent=part)[0]
    assert last.progress == 1
    assert last.state is None
    assert np.abs(pixels(last) - pixels(whole)).max() <= 1


@pytest.mark.parametrize("name", SCHEDULERS)
def test_resumed_latents_are_within_a_ten_thousandth(pipes, name, monkeypatch):
    generator = make(pipes, name)
    wanted = latents(generator, 5)
    part = draw(generator, Draw(5, until=0.5))[0]
    ends = []
    decode = generator.pipe.vae.decode
    scaling = generator.pipe.vae.config.scaling_factor
    shift = generator.pipe.vae.config.shift_factor if name.startswith("flow") else 0

    def watched(latents, **kwargs):
        ends.append(((latents - shift) * scaling).numpy())
        return decode(latents, **kwargs)

    monkeypatch.setattr(generator.pipe.vae, "decode", watched)
    draw(generator, Continue("parent", 1.0, 9), parent=part)
    assert np.abs(ends[0][0] - wanted).max() < 1e-4


def test_both_parts_cost_what_the_whole_costs_and_one_preview(pipes):
    generator = make(pipes)
    half = draw(generator, Draw(5, until=0.5))[0]
    rest = draw(generator, Continue("parent", 1.0, 9), parent=half)[0]
    assert (half.cost.network_evaluations, half.cost.vae_passes) == (6, 1)
    assert (rest.cost.network_evaluations, rest.cost.vae_passes) == (6, 1)
    back = draw(generator, Continue("parent", 1.0, 9, renoise=1 / 3), parent=half)[0]
    assert back.cost.network_evaluations == 10


def test_the_preview_is_the_clean_image_in_the_latents(pipes, monkeypatch):
    """A network that always answers e - x0 knows the end of the drawing from the first step."""
    generator = make(pipes, guidance=1.0)
    target = torch.full((2, 16, 8, 8), 0.25)

    def perfect(hidden_states, timestep, **_):
        sigma = timestep[0] / 1000
        return ((hidden_states - target) / sigma,)

    monkeypatch.setattr(generator.pipe.transformer, "forward", perfect)
    end = draw(generator, Draw(5))[0]
    early = draw(generator, Draw(5, until=0.2))[0]
    assert np.abs(pixels(early) - pixels(end)).max() <= 1
    assert np.abs(early.state["latents"] - 0.25).max() > 1


@pytest.mark.parametrize("name", mostly_slow(["flow", "Euler"], quick=["flow"]))
@pytest.mark.parametrize(
    "proposal",
    [
        Draw(3, until=0.5),
        Continue("parent", 0.8, 3),
        Continue("parent", 1.0, 3, renoise=0.3),
        Continue("parent", 1.0, 3, eta=0.7),
    ],
)
def test_a_proposal_gives_the_same_image_in_any_batch(pipes, name, proposal):
    generator = make(pipes, name)
    parent = draw(generator, Draw(1, until=0.5))[0]
    alone = draw(generator, proposal, parent=parent)[0]
    others = [Draw(9), Continue("parent", 1.0, 4), Continue("parent", 1.0, 5, eta=1.0)]
    among = draw(generator, *others, proposal, Continue("parent", 1.0, 6), parent=parent)[3]
    assert np.array_equal(pixels(alone), pixels(among))
    assert alone.progress == among.progress


@pytest.mark.parametrize("kind", ["renoise", "eta"])
def test_fresh_noise_is_the_seeds_and_grows_with_its_share(pipes, kind):
    generator = make(pipes)
    parent = draw(generator, Draw(1, until=0.5))[0]

    def resumed(seed, share):
        (sample,) = draw(generator, Continue("parent", 2 / 3, seed, **{kind: share}), parent=parent)
        return sample.state["latents"]

    plain, little, much = resumed(2, 0.0), resumed(2, 0.2), resumed(2, 0.5)
    assert np.array_equal(much, resumed(2, 0.5))
    assert np.abs(much - resumed(3, 0.5)).max() > 0.1
    assert 0 < np.abs(little - plain).mean() < np.abs(much - plain).mean()
    assert np.array_equal(plain, resumed(7, 0.0))


@pytest.mark.parametrize("name", ["flow", "DDIM", "Euler"])
def test_going_back_keeps_the_forward_process(pipes, name):
    """Noised to one level and then to a higher one has the mean and spread of that level."""
    scheduler = SCHEDULERS[name]
    scheduler.set_timesteps(10)
    levels = noise_levels(scheduler)
    assert len(levels) == 11
    level, target = levels[6], levels[2]
    make_noise = torch.Generator().manual_seed(0)
    noise, fresh = (torch.randn(40_000, generator=make_noise) for _ in range(2))
    back = sample_forward_kernel(level.a * 5 + level.s * noise, level, target=target, noise=fresh)
    assert float(back.mean()) == pytest.approx(5 * target.a, abs=0.03 * target.s)
    assert float(back.std()) == pytest.approx(target.s, rel=0.02)


def test_going_back_to_the_start_forgets_the_parent(pipes):
    generator = make(pipes)
    parents = [draw(generator, Draw(seed, until=0.5))[0] for seed in (1, 2)]
    back = Continue("parent", 1.0, 3, renoise=0.5)
    one, other = (draw(generator, back, parent=parent)[0] for parent in parents)
    assert np.array_equal(pixels(one), pixels(other))


def test_at_least_one_step_is_taken(pipes):
    generator = make(pipes)
    first = draw(generator, Draw(1, until=0.01))[0]
    assert first.progress == pytest.approx(1 / 6)
    more = draw(generator, Continue("parent", 0.01, 3), parent=first)[0]
    assert more.progress == pytest.approx(2 / 6)


def test_the_pipelines_own_scheduler_is_put_back(pipes):
    generator = make(pipes)
    own = generator.pipe.scheduler
    draw(generator, Draw(1, until=0.5))
    assert generator.pipe.scheduler is own
    assert "set_timesteps" not in vars(own)
    assert "prepare_latents" not in vars(generator.pipe)


def test_a_parent_without_a_state_is_refused(pipes):
    generator = make(pipes)
    parent = Trial("p", PROMPT, 0, Draw(1, until=0.5), 0.5)
    with pytest.raises(InputError, match="needs the state of trial p"):
        generator.generate([Job(PROMPT, Continue("p", 1.0, 2), (parent,))])


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (PNDMScheduler(skip_prk_steps=True, steps_offset=1), "PNDMScheduler cannot be resumed"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "ignores the seeds"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas is not supported"),
    ],
)
def test_other_schedulers_are_refused_by_name(pipes, scheduler, reason):
    pipe = pipes["sd15"]
    pipe.scheduler = scheduler
    warned = pytest.warns(RunWarning, match="never the same again")
    with warned if scheduler.config.get("stochastic_sampling") else nullcontext():
        generator = DiffusersGenerator(pipe, steps=4, batch_size=2)
    assert Continue not in generator.supports
    message = f"StableDiffusionPipeline with {type(scheduler).__name__} cannot serve.*{reason}"
    with pytest.raises(UnsupportedError, match=message):
        draw(generator, Draw(1, until=0.5))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("DDIM", {"eta": 0.5}),
        ("flow", {"skip_guidance_layers": [0]}),
        ("flow", {"callback_on_step_end": print}),
    ],
)
def test_a_call_that_counts_steps_or_adds_noise_is_refused(pipes, name, call):
    generator = make(pipes, name, call=call)
    assert Continue not in generator.supports
    with pytest.raises(UnsupportedError, match=f"{next(iter(call))} in its call"):
        draw(generator, Draw(1, until=0.5))


@pytest.mark.parametrize(
    ("end", "refused"), [(1.0, ""), ([1.0, 1.0], ""), (0.5, "end"), ([1, 0.5], "end")]
)
def test_a_controlnet_that_ends_early_counts_steps(pipes, end, refused):
    pipe = pipes["sd15"]
    pipe.scheduler = SCHEDULERS["DDIM"]
    assert refused in resume_problem(pipe, {"control_guidance_end": end})
    assert bool(resume_problem(pipe, {"control_guidance_end": end})) is bool(refused)


@pytest.mark.parametrize(
    "proposal",
    [Draw(1, until=1.5), Continue("p", 1.0, 2, eta=-0.1), Continue("p", 1.0, 2, renoise=np.nan)],
)
def test_shares_outside_0_and_1_are_refused(pipes, proposal):
    with pytest.raises(InputError, match=r"(until|eta|renoise) must be in \[0, 1\], got"):
        draw(make(pipes), proposal)


def test_half_precision_resumes_exactly_with_a_fixed_batch(tmp_path):
    pipe = sd3(tmp_path).to(torch.bfloat16)
    generator = DiffusersGenerator(pipe, steps=4, guidance=3.0, batch_size=2)
    whole, half = draw(generator, Draw(1))[0], draw(generator, Draw(1, until=0.5))[0]
    rest = draw(generator, Continue("parent", 1.0, 2), parent=half)[0]
    assert np.array_equal(pixels(rest), pixels(whole))
    shaken = draw(generator, Continue("parent", 1.0, 2, renoise=0.25, eta=0.5), parent=half)[0]
    assert not np.array_equal(pixels(shaken), pixels(whole))
