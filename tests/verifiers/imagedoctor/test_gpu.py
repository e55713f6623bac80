"""Behaviour that only a GPU has: captured steps and maps, kernels, memory that runs out."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden_numbers import EXPECTED, TOLERANCES, check
from tiny_engine import EOS, ForcedTokens, requests

from tts_verifier.errors import RunWarning
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine, generate
from tts_verifier.verifiers.imagedoctor.engine.heatmaps import MapDecoder, MapQueue
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.requests import GenerationLimits, GenerationRequest

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
