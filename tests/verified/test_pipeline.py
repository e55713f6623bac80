"""A wrapped pipeline is called as the pipeline is, and its calls are searches."""

import inspect
import pickle
import warnings

import numpy as np
import pytest
import tiny_families
import torch
from diffusers import AutoPipelineForInpainting, StableDiffusionImg2ImgPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_output import StableDiffusion3PipelineOutput
from PIL import Image
from searches import InpaintReroll, SeedBeam
from tiny_pipelines import CALL, same, sd15

from tts_verifier import BestOfN, Objective, VerifiedPipeline, wrap
from tts_verifier.choice.ranking import Ranking
from tts_verifier.errors import InputError, RunWarning, UnsupportedError
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.runner import run
from tts_verifier.strategies.adaptive import Adaptive
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Budget, Repaint


def test_the_output_is_the_pipelines_own_with_the_best_picture_first(verified):
    out = verified("a red circle", seed=1, **CALL)
    assert type(out) is StableDiffusion3PipelineOutput
    assert len(out.images) == 1
    assert same(out.images[0], out.ranking.best.image)
    values = [item.objective for item in out.ranking]
    assert values == sorted(values, reverse=True)
    assert [t.objective for t in out.trials] == [
        item.objective for item in sorted(out.ranking, key=lambda item: item.index)
    ]
    assert out.ranking.best.verdict.heatmaps["artifact"].shape == (16, 16)
    assert len(out.trials) == 3
    assert out.seed == 1


def test_a_notebook_shows_the_candidates_of_each_prompt(verified):
    html = verified("a <red> circle", seed=1, **CALL)._repr_html_()
    assert "<p>a &lt;red&gt; circle</p>" in html
    assert html.count("<img") == 2 * 3
    out = pickle.loads(pickle.dumps(verified(["a", "b"], seed=1, **CALL)))
    assert out._repr_html_().count("<p>") == 2


def test_a_call_is_a_run_with_that_seed(pipe, verified):
    from tts_verifier.generators.diffusers import DiffusersGenerator

    out = verified("a red circle", seed=1, **CALL)
    generator = DiffusersGenerator(pipe, call=CALL, batch_size=3)
    ran = run(["a red circle"], generator, FakeVerifier(), BestOfN(3), seed=1)
    assert same(out.images[0], ran.images["0000"])


def test_a_generator_repeats_a_call_and_moves_on(verified):
    one, other = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    first = verified("a", generator=one, **CALL)
    second = verified("a", generator=one, **CALL)
    assert same(first.images[0], verified("a", generator=other, **CALL).images[0])
    assert not same(first.images[0], second.images[0])
    assert verified("a", seed=np.int64(first.seed), **CALL).seed == first.seed


def test_without_a_seed_every_call_differs_and_says_how_to_repeat_it(verified):
    one, other = verified("a", **CALL), verified("a", **CALL)
    assert one.seed != other.seed
    assert same(verified("a", seed=one.seed, **CALL).images[0], one.images[0])


def test_lists_of_prompts_have_a_ranking_each(verified):
    out = verified(["a red circle", "a blue square"], seed=1, **CALL)
    assert len(out.images) == len(out.ranking) == 2
    assert all(isinstance(ranking, Ranking) for ranking in out.ranking)
    assert len(out.trials) == 6
    alone = verified("a blue square", seed=1, **CALL)
    near = np.asarray(out.images[1], int) - np.asarray(alone.images[0], int)
    assert np.abs(near).max() <= 1


def test_the_same_prompt_twice_is_two_searches(verified):
    out = verified(["a", "a"], seed=1, **CALL)
    assert not same(*out.images)
    assert out.seed == 1


def test_every_prompt_may_have_its_own_negative_prompt_and_generator(verified):
    seeds = [torch.Generator().manual_seed(s) for s in (1, 2)]
    lists = {"generator": seeds, "negative_prompt": ["red", "blue"], "prompt_2": "x"}
    out = verified(["a", "b"], **lists, **CALL)
    assert len(out.images) == 2
    assert out.seed is None
    alone = verified(
        "b", generator=torch.Generator().manual_seed(2), negative_prompt="blue", prompt_2="x",
        **CALL,
    )  # fmt: skip
    assert np.abs(np.asarray(out.images[1], int) - np.asarray(alone.images[0], int)).max() <= 1


def test_several_images_of_a_prompt_are_the_best_in_order(verified):
    out = verified("a", num_images_per_prompt=2, seed=1, **CALL)
    assert [same(a, b.image) for a, b in zip(out.images, out.ranking, strict=False)] == [True] * 2


@pytest.mark.parametrize(("kind", "shape"), [("np", (2, 16, 16, 3)), ("pt", (2, 3, 16, 16))])
def test_output_types_hold_the_judged_picture(verified, kind, shape):
    pil = verified("a", num_images_per_prompt=2, seed=1, **CALL)
    out = verified("a", num_images_per_prompt=2, seed=1, output_type=kind, **CALL)
    assert tuple(out.images.shape) == shape
    wanted = np.asarray(pil.images[0], np.float32) / 255
    pixels = out.images[0] if kind == "np" else out.images[0].permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, wanted)


def test_a_tuple_is_returned_where_it_is_asked_for(verified):
    (images,) = verified("a", seed=1, return_dict=False, **CALL)
    assert len(images) == 1


def test_parts_of_a_run_can_be_given(pipe):
    options = {"objective": Objective({"aesthetics": 1.0}), "budget": Budget(candidates=2)}
    out = VerifiedPipeline(pipe, FakeVerifier(), detail="score", **options)("a", seed=1, **CALL)
    assert len(out.trials) == 2
    assert out.trials[0].objective == out.trials[0].scores["aesthetics"]
    assert not out.trials[0].verdict.heatmaps


def test_only_the_best_images_are_diagnosed_if_a_call_asks_for_looks(pipe):
    verifier = FakeVerifier()
    out = VerifiedPipeline(pipe, verifier, strategy=BestOfN(3), looks=1)("a", seed=1, **CALL)
    assert [entry[0] for entry in verifier.trace].count("v") == 1
    assert [item.verdict.detail for item in out.ranking] == ["diagnose", "score", "score"]
    assert same(out.images[0], out.ranking.best.image)
    assert sorted(out.ranking.best.verdict.heatmaps) == ["artifact", "misalignment"]
    assert len(out.trials) == 4
    assert out.verified == [True]


def test_looks_that_do_not_fit_are_refused_when_the_pipeline_is_wrapped(pipe):
    with pytest.raises(InputError, match="looks must be at most 2, as many images as are finished"):
        wrap(pipe, FakeVerifier(), strategy=BestOfN(2), looks=3)
    with pytest.raises(InputError, match="looks must be passed when the pipeline is wrapped"):
        wrap(pipe, FakeVerifier()).looks = 1


def test_a_misspelt_score_is_refused_when_the_pipeline_is_wrapped(pipe):
    for options in (
        {"objective": Objective({"overal": 1.0})},
        {"objective": {"overal": 1.0}},
        {"strategy": Adaptive(BestOfN(2), {"overal": 0.5})},
    ):
        with pytest.raises(InputError, match=r"got 'overal'\. Did you mean 'overall'"):
            wrap(pipe, FakeVerifier(), **options)


def test_other_strategies_work_and_what_a_pipeline_cannot_do_is_refused(pipe):
    strategy = SeedBeam(4, stops=(0.5, 1.0))
    out = wrap(pipe, FakeVerifier(), strategy=strategy)("a", seed=1, **CALL)
    assert {type(t.proposal).__name__ for t in out.trials} == {"Draw", "Continue"}
    verified = wrap(pipe, FakeVerifier(), strategy=strategy)
    scheduler = pipe.scheduler
    from diffusers import FlowMatchHeunDiscreteScheduler

    verified.scheduler = FlowMatchHeunDiscreteScheduler.from_config(scheduler.config)
    try:
        assert type(pipe.scheduler) is FlowMatchHeunDiscreteScheduler
        with pytest.raises(UnsupportedError, match="continue"):
            verified("a", seed=1, **CALL)
    finally:
        pipe.scheduler = scheduler


def test_all_other_attributes_are_the_pipelines(pipe, verified):
    assert verified.vae is pipe.vae
    assert verified.to("cpu") is verified
    assert repr(verified) == "VerifiedPipeline(StableDiffusion3Pipeline, FakeVerifier, BestOfN)"
    with pytest.raises(AttributeError, match="nothing"):
        verified.nothing  # noqa: B018


def test_missing_images_are_none_with_a_warning(tmp_path, monkeypatch):
    pipe = sd15(tmp_path)
    monkeypatch.setattr(
        pipe, "run_safety_checker", lambda image, *_: (image, [True] + [False] * (len(image) - 1))
    )
    verified = wrap(pipe, FakeVerifier(), strategy=BestOfN(2))
    call = {"num_inference_steps": 1, "seed": 1, "num_images_per_prompt": 2}
    with pytest.warns(RunWarning, match="1 usable candidates of the 2"):
        out = verified("a", **call)
    assert out.images[1] is None
    assert "safety checker" in out.trials[0].error
    assert not out.trials[0].scores
    with pytest.warns(RunWarning, match="1 usable"):
        array = verified("a", output_type="np", **call).images
    assert np.isnan(array[1]).all()
    assert np.isfinite(array[0]).all()


def test_where_every_candidate_failed_alike_the_reason_is_raised(tmp_path, monkeypatch):
    pipe = sd15(tmp_path)

    def broken(*_, **__):
        raise RuntimeError("no such layer")

    monkeypatch.setattr(pipe, "prepare_latents", broken)
    with (
        pytest.warns(RunWarning, match="no such layer"),
        pytest.raises(UnsupportedError, match="every one failed: RuntimeError: no such layer"),
    ):
        wrap(pipe, FakeVerifier(), strategy=BestOfN(2))("a", num_inference_steps=1)


def test_where_all_was_blanked_the_images_are_none(tmp_path, monkeypatch):
    pipe = sd15(tmp_path)
    monkeypatch.setattr(pipe, "run_safety_checker", lambda image, *_: (image, [True] * len(image)))
    with pytest.warns(RunWarning, match="0 usable candidates of the 1"):
        out = wrap(pipe, FakeVerifier(), strategy=BestOfN(2))("a", num_inference_steps=1)
    assert out.images == [None]


def test_a_tuple_has_what_the_pipelines_own_has(tmp_path):
    verified = wrap(sd15(tmp_path), FakeVerifier(), strategy=BestOfN(2))
    images, flags = verified("a", num_inference_steps=1, return_dict=False)
    assert len(images) == 1
    assert flags is None


def test_a_tuple_has_all_its_fields_where_the_last_search_drew_nothing(tmp_path, monkeypatch):
    pipe = sd15(tmp_path)
    own = pipe.prepare_latents

    def late(*args, **kwargs):
        if seen:
            raise RuntimeError("too late")
        return own(*args, **kwargs)

    seen = []
    monkeypatch.setattr(pipe, "prepare_latents", late)
    verified = wrap(pipe, FakeVerifier(), strategy=BestOfN(1))
    call = {"num_inference_steps": 1, "return_dict": False}
    call["callback_on_step_end"] = lambda *_: seen.append(1) or {}
    with pytest.warns(RunWarning, match="too late|0 usable"):
        images, flags = verified(["a", "b"], negative_prompt=["x", "y"], **call)
    assert [image is None for image in images] == [False, True]
    assert flags is None


def test_images_of_several_sizes_are_a_list(tmp_path):
    pipe = StableDiffusionImg2ImgPipeline(**sd15(tmp_path).components)
    pipe.set_progress_bar_config(disable=True)
    verified = wrap(pipe, FakeVerifier(), strategy=BestOfN(1))
    images = [Image.new("RGB", size) for size in ((16, 16), (32, 16))]
    call = {"num_inference_steps": 2, "strength": 0.5, "seed": 1, "image": images}
    for kind, shapes in (
        ("np", [(16, 16, 3), (16, 32, 3)]),
        ("pt", [(3, 16, 16), (3, 16, 32)]),
    ):
        out = verified(["a", "b"], output_type=kind, **call)
        assert [tuple(image.shape) for image in out.images] == shapes


def test_a_video_is_a_list_of_frames(tmp_path):
    family = tiny_families.FAMILIES["wan"](tmp_path)
    verified = wrap(family.pipe, FakeVerifier(), strategy=BestOfN(2))
    out = verified("a", seed=1, num_videos_per_prompt=2, **family.call)
    assert [len(frames) for frames in out.frames] == [1, 1]
    assert same(out.frames[0][0], out.images[0])
    array = verified("a", seed=1, output_type="np", **family.call).frames
    assert array.shape[:2] == (1, 1)


def test_memory_that_ran_out_once_is_remembered(tmp_path, monkeypatch):
    pipe = sd15(tmp_path)
    own = pipe.prepare_latents

    def crowded(batch_size, *args, **kwargs):
        if batch_size > 1:
            raise torch.OutOfMemoryError("out of memory")
        return own(batch_size, *args, **kwargs)

    monkeypatch.setattr(pipe, "prepare_latents", crowded)
    verified = wrap(pipe, FakeVerifier(), strategy=BestOfN(2))
    negative = {"negative_prompt": ["red", "blue"]}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            verified(["a", "b"], num_inference_steps=1, **negative)
    limits = [str(one.message).split()[6] for one in warned if one.category is RunWarning]
    assert limits == ["4", "2", "1"]


def test_another_pipeline_repaints(pipe, tmp_path):
    fill = AutoPipelineForInpainting.from_pipe(sd15(tmp_path))
    fill.set_progress_bar_config(disable=True)
    strategy = InpaintReroll(2, 2)
    out = wrap(pipe, FakeVerifier(), strategy=strategy, inpaint=fill)("a", **CALL)
    kinds = {type(t.proposal) for t in out.trials}
    assert Repaint in kinds
    fill.save_pretrained(tmp_path / "fill", safe_serialization=True)
    named = wrap(pipe, FakeVerifier(), strategy=strategy, inpaint=str(tmp_path / "fill"))
    assert type(named.inpaint).__name__ == "StableDiffusionInpaintPipeline"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"verifier": None}, "verifier must be an object with verify, got None"),
        ({"verifier": FakeVerifier}, "verifier must be an object with verify, got <class"),
        ({"strategy": "best_of_n"}, "strategy must be an object with propose and needs"),
        ({"stratgy": BestOfN(2)}, "wrap does not take stratgy. Did you mean 'strategy'"),
        ({"seed": 1}, "wrap does not take seed"),
    ],
)
def test_parts_and_options_that_are_none_are_refused(pipe, arguments, message):
    with pytest.raises(InputError, match=message):
        wrap(pipe, **{"verifier": FakeVerifier(), **arguments})


def test_a_wrapped_pipeline_is_not_wrapped_again(verified):
    with pytest.raises(InputError, match="got one that is wrapped already"):
        wrap(verified, FakeVerifier())


def test_a_call_makes_no_inpainting_pipeline_unless_it_repaints(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(AutoPipelineForInpainting, "from_pipe", lambda *_, **__: made.append(1))
    wrap(sd15(tmp_path), FakeVerifier(), strategy=BestOfN(2))("a", num_inference_steps=1)
    assert not made


def test_sizes_that_pipelines_cannot_make_are_refused_before_they_are_called(verified, tmp_path):
    with pytest.raises(InputError, match="width must be from 4 to 32 pixels and a multiple of 4"):
        verified("a", **CALL, width=18)
    fill = AutoPipelineForInpainting.from_pipe(sd15(tmp_path))
    fill.vae_scale_factor = 8  # as of the released weights
    small = DiffusersGenerator(verified.pipe, height=12, inpaint=fill)
    assert small.lacks[Repaint].startswith("height must be from 8 to 65536 pixels and a multiple")


def test_the_batch_size_may_be_changed_between_calls(tmp_path, monkeypatch):
    pipe, sizes = sd15(tmp_path), []
    prepare = pipe.prepare_latents

    def watched(batch_size, *args):
        sizes.append(batch_size)
        return prepare(batch_size, *args)

    monkeypatch.setattr(pipe, "prepare_latents", watched)
    verified = wrap(pipe, FakeVerifier(), strategy=BestOfN(2))
    verified("a", num_inference_steps=1)
    verified.batch_size = 1
    verified("a", num_inference_steps=1)
    assert sizes == [2, 1, 1]


def test_options_are_given_once(verified):
    with pytest.raises(InputError, match="objective must be passed when the pipeline is wrapped"):
        verified.objective = Objective()


def test_a_pipeline_that_is_not_text_to_image_is_refused():
    from diffusers import KandinskyV22PriorPipeline, StableVideoDiffusionPipeline

    for kind in (KandinskyV22PriorPipeline, StableVideoDiffusionPipeline):
        if "prompt" in inspect.signature(kind.__call__).parameters:
            continue
        with pytest.raises(InputError, match="takes no prompt"):
            wrap(kind.__new__(kind), FakeVerifier())
    with pytest.raises(InputError, match="text-to-image"):
        wrap(None, FakeVerifier())
