"""What only a GPU shows: golden numbers through captured steps and maps, memory that runs out."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden_numbers import EXPECTED, TOLERANCES, check
from tiny_engine import EOS, requests

from tts_verifier.verifiers.imagedoctor.engine.decode_step import Step
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine, generate
from tts_verifier.verifiers.imagedoctor.engine.heatmaps import MapDecoder
from tts_verifier.verifiers.imagedoctor.generation import (
    ForcedStep,
    GenerationLimits,
    GenerationRequest,
)
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_golden_numbers_hold_through_the_engine(
    official: ImageDoctorModel, recipes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = official.cuda().requires_grad_(False)
    sample = recipes.samples[0]
    asked = [GenerationRequest(sample["prompt_ids"].tolist(), sample["pixel_values"], (36, 36))] * 3
    for reply in generate(built, asked, GenerationLimits(12, ())):
        assert reply.ids == EXPECTED["s0.greedy_ids"].tolist()
    starts = [len(s["prompt_ids"]) for s in recipes.samples]
    forced = [
        torch.tensor(s["input_ids"][n:]).cuda()
        for s, n in zip(recipes.samples, starts, strict=True)
    ]
    hidden: list[torch.Tensor] = []

    def told(step: Step, _rows: int, _turn: ForcedStep) -> torch.Tensor:
        at = len(hidden)
        hidden.append(step.slots.hidden.clone())
        return torch.stack([row[min(at, len(row) - 1)] for row in forced])

    def called(step: Step, *key: object) -> SimpleNamespace:
        return SimpleNamespace(replay=lambda: step._step(*key))

    monkeypatch.setattr(Step, "_choose", told)
    monkeypatch.setattr(Step, "_capture", called)
    asked = [
        GenerationRequest(s["prompt_ids"].tolist(), s["pixel_values"], (36, 36))
        for s in recipes.samples
    ]
    replies = generate(built, asked, GenerationLimits(max(map(len, forced)) + 1, ()))
    whole = torch.stack(hidden, dim=1)
    for i, row in enumerate(forced):
        states = whole[i, [row.tolist().index(token) for token in (2010, 2011)]]
        check(i, "hidden", states.cpu())
        check(i, "logits_last8", built.lm_head(whole[i, len(row) - 7 : len(row) + 1]).cpu())
        visual = replies[i].visual.expand(2, -1, -1)
        for _ in range(2):  # recorded, then replayed
            maps = MapDecoder(built)(states, visual, (18, 18)).cpu()
        for k in range(2):
            differs = np.abs(maps[k].double().numpy() - EXPECTED[f"s{i}.heatmaps_f16"][k]).max()
            assert differs <= TOLERANCES["heatmaps_f16"]


def test_a_reply_is_what_a_cpu_writes_whatever_its_companions(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(24, (EOS,), 1.05)
    expected = generate(model, requests(model), limits)
    built = model.cuda()
    for rows in (1, 2, 5):
        found = dict(Engine(built, limits, slots=rows).replies(requests(model)))
        for i, reply in enumerate(expected):
            assert found[i].ids == reply.ids
            torch.testing.assert_close(
                found[i].map_states.cpu(), reply.map_states, atol=1e-4, rtol=1e-4
            )
    model.cpu()


def test_memory_that_runs_out_halves_the_rows(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(24, (EOS,), 1.05)
    expected = [reply.ids for reply in generate(model, requests(model), limits)]
    built = model.cuda()
    taken = torch.cuda.mem_get_info()[1]
    roomy = dataclasses.replace(limits, max_new_tokens=200_000)
    torch.cuda.set_per_process_memory_fraction(2**30 / taken)
    try:
        engine = Engine(built, roomy, slots=64)
        with pytest.warns(UserWarning, match="Memory ran out with batch_size 64"):
            found = dict(engine.replies(requests(model)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        model.cpu()
    assert engine.rows < 64
    assert [found[i].ids[: len(ids)] for i, ids in enumerate(expected)] == expected
