"""Behaviour that only a GPU has: captured steps and maps, kernels, memory that runs out."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden_numbers import EXPECTED, TOLERANCES, check
from tiny_engine import EOS, ForcedTokens, requests
from tiny_imagedoctor import noise

from tts_verifier.errors import RunWarning
from tts_verifier.verifiers.imagedoctor.checkpoint.replace import copy_weights
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine, generate
from tts_verifier.verifiers.imagedoctor.engine.heatmaps import MapDecoder, MapQueue
from tts_verifier.verifiers.imagedoctor.engine.next_token import draws_of, sample
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.model.flash import attend
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.requests import (
    GenerationLimits,
    GenerationRequest,
    Sampling,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_golden_numbers_hold_through_the_engine(
    official: ImageDoctorModel, recipes: SimpleNamespace
) -> None:
    built = official.cuda().requires_grad_(False)
    sample = recipes.samples[0]
    request = GenerationRequest(sample["prompt_ids"].tolist(), sample["pixel_values"], (36, 36))
    for reply in generate(built, [request] * 3, GenerationLimits(12, ())):
        assert reply.ids == EXPECTED["s0.greedy_ids"].tolist()
    completions = [
        torch.tensor(s["input_ids"][len(s["prompt_ids"]) :]).cuda() for s in recipes.samples
    ]
    prompts = [
        GenerationRequest(s["prompt_ids"].tolist(), s["pixel_values"], (36, 36))
        for s in recipes.samples
    ]
    forced = ForcedTokens(completions)
    limits = GenerationLimits(max(map(len, completions)) + 1, ())
    replies = generate(built, prompts, limits, choose=forced, capture=False)
    logits = forced.logits().cpu()
    for i, ids in enumerate(completions):
        states = replies[i].map_states
        check(i, "hidden", states.cpu())
        check(i, "logits_last8", logits[i, len(ids) - 7 : len(ids) + 1])
        visual = replies[i].visual.expand(2, -1, -1)
        for _ in range(2):  # captured, then replayed
            maps = MapDecoder(built)(states, visual, (18, 18)).cpu()
        for k in range(2):
            differs = np.abs(maps[k].double().numpy() - EXPECTED[f"s{i}.heatmaps_f16"][k]).max()
            assert differs <= TOLERANCES["heatmaps_f16"]


@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_half_precision_is_left_to_a_kernel_that_plans_nothing(causal: bool) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(3, heads, 37, 80, generator=g).to("cuda", torch.bfloat16) for heads in (4, 2, 2)
    )
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = attend(q, k, v, causal=causal)
    called = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention" in called
    expected = attend(q.double().cpu(), k.double().cpu(), v.double().cpu(), causal=causal)
    torch.testing.assert_close(found.double().cpu(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_levels_become_the_values_of_the_patches(
    model: ImageDoctorModel, dtype: torch.dtype
) -> None:
    built, processor = copy.deepcopy(model).to("cuda", dtype), Processor(input_size=112)
    image = noise(90, 70)
    patches, levels = processor(image), processor.levels(image)
    ids = [1, 2, *[built.config.image_token_id] * processor.merged_tokens, 3]
    plain = GenerationRequest(ids, patches.values, patches.grid)
    looked_up = replace(plain, patches=levels, level_values=processor.level_values)
    # Each alone, since results depend on a batch's shape.
    one, other = (
        generate(built, [request], GenerationLimits(2, ()))[0] for request in (plain, looked_up)
    )
    assert torch.equal(one.visual, other.visual)


def test_maps_are_float32_whatever_the_default_dtype_is(model: ImageDoctorModel) -> None:
    request = requests(model)[0]
    reply = generate(model.cuda(), [request], GenerationLimits(4, (EOS,)))[0]
    with_maps = dataclasses.replace(reply, has_map=(True, True))
    before = torch.get_default_dtype()
    try:
        queue = MapQueue(MapDecoder(model))
        torch.set_default_dtype(torch.bfloat16)
        queue.add(0, with_maps, request.grid)
        maps = queue.finish()[0]
    finally:
        torch.set_default_dtype(before)
        model.cpu()
    assert {grid_map.dtype for grid_map in maps.values()} == {np.dtype(np.float32)}


def test_a_reply_is_that_of_a_cpu_whatever_its_companions(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(24, (EOS,), 1.05)
    expected = generate(model, requests(model), limits)
    built = model.cuda()
    for sequences in (1, 2, 5):
        engine = Engine(built, limits, sequences=sequences)
        replies = dict(engine.replies(requests(model)))
        for i, reply in enumerate(expected):
            assert replies[i].ids == reply.ids
            torch.testing.assert_close(
                replies[i].map_states.cpu(), reply.map_states, atol=1e-4, rtol=1e-4
            )
    model.cpu()


def test_memory_that_runs_out_halves_the_sequences(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(24, (EOS,), 1.05)
    expected = [reply.ids for reply in generate(model, requests(model), limits)]
    built = model.cuda()
    total = torch.cuda.mem_get_info()[1]
    long = dataclasses.replace(limits, max_new_tokens=200_000)
    torch.cuda.set_per_process_memory_fraction(2**30 / total)
    try:
        # 1.6 MB of reply tokens for each sequence.
        engine = Engine(built, long, sequences=1024)
        with pytest.warns(RunWarning, match="Memory ran out with batch_size 1024"):
            replies = dict(engine.replies(requests(model)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        model.cpu()
    assert engine.sequences < 1024
    assert [replies[i].ids[: len(ids)] for i, ids in enumerate(expected)] == expected


SETTINGS = [Sampling(1.2), Sampling(1.3, 40), Sampling(1.0, 0, 0.9), Sampling(1.5, 60, 0.95)]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_drawn_replies_are_those_of_a_cpu_in_any_batch(
    model: ImageDoctorModel, setting: Sampling
) -> None:
    limits = GenerationLimits(24, (EOS,), 1.05, sampling=setting, log_probs=True)
    prompts = [
        dataclasses.replace(request, seed=seed) for seed in range(4) for request in requests(model)
    ]
    expected = generate(model, prompts, limits)
    built = model.cuda()
    try:
        for sequences, order in ((1, 1), (3, -1), (20, 1)):
            engine = Engine(built, limits, sequences=sequences)
            for _ in range(2):  # captured, then replayed
                replies = dict(engine.replies(prompts[::order]))
                for i, reply in enumerate(expected[::order]):
                    assert (replies[i].ids, replies[i].end) == (reply.ids, reply.end)
                    np.testing.assert_allclose(
                        replies[i].log_probs, reply.log_probs, atol=1e-4, rtol=1e-4
                    )
    finally:
        model.cpu()


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("columns", [320, 151_936])
def test_a_row_draws_the_same_token_in_any_number_of_rows(setting: Sampling, columns: int) -> None:
    g = torch.Generator("cuda").manual_seed(0)
    scores = torch.randn(64, columns, generator=g, device="cuda") * 3
    draws = torch.from_numpy(draws_of(range(64), 1))[:, 0].cuda()
    with torch.inference_mode():
        together = sample(scores, draws, setting)
        for rows in (1, 2, 5, 33):
            part = sample(scores[64 - rows :], draws[64 - rows :], setting)
            assert torch.equal(part, together[64 - rows :])
    # Rounding moves a draw across the border of two tokens once in some 100,000.
    assert (together.cpu() != sample(scores.cpu(), draws.cpu(), setting)).sum() <= 1


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    logits = torch.randn(1, 16, generator=torch.Generator().manual_seed(1)).cuda() * 2
    draws = torch.from_numpy(draws_of(range(4000), 4))[:, 3].cuda()
    with torch.inference_mode():
        counts = torch.bincount(sample(logits.expand(4000, -1), draws, Sampling()), minlength=16)
    probs = logits.softmax(-1)[0]
    sigma = (4000 * probs * (1 - probs)).sqrt()
    assert ((counts - 4000 * probs).abs() <= 3 * sigma + 1e-3).all()


def test_log_probabilities_are_those_of_a_teacher_forced_pass(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(24, (EOS,), sampling=Sampling(0.8, 50, 0.9), log_probs=True)
    prompts = requests(model)
    built = model.cuda()
    try:
        replies = generate(built, prompts, limits)
        compared = 0
        for request, reply in zip(prompts, replies, strict=True):
            completion = [*reply.ids, *([reply.end] if reply.ended else [])]
            if built.config.image_token_id in completion:
                continue  # random weights draw it too, and a whole pass would look for its image
            compared += 1
            ids = torch.tensor([[*request.ids, *completion]], device="cuda")
            with torch.no_grad():
                pixels = torch.from_numpy(request.patches).cuda()
                logits = built(ids, pixels, [(1, *request.grid)]).logits
            log_probs = (logits[0, len(request.ids) - 1 : -1].double() / 0.8).log_softmax(-1).cpu()
            expected = log_probs.gather(1, torch.tensor(completion)[:, None])[:, 0]
            np.testing.assert_allclose(reply.log_probs, expected, atol=1e-4)
        assert compared > 1
    finally:
        model.cpu()


def test_captured_steps_use_weights_that_were_replaced_in_place(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(24, (EOS,))
    g = torch.Generator().manual_seed(5)
    new = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=g)
        for name, tensor in model.state_dict().items()
    }
    fresh, built = copy.deepcopy(model), copy.deepcopy(model).cuda()
    fresh.load_state_dict(new)
    expected = [reply.ids for reply in generate(fresh, requests(model), limits)]
    engine = Engine(built, limits, sequences=3)
    list(engine.replies(requests(model)))
    step = engine.decode_step
    copy_weights(built, new)
    replies = dict(engine.replies(requests(model)))
    assert [replies[i].ids for i in range(5)] == expected
    # The same step with what it had captured: graphs with old weights would reply as before.
    assert engine.decode_step is step
