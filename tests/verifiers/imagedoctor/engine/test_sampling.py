"""Drawn replies: the right distribution, the same for the same seed, with their probabilities."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import mostly_slow
from tiny_engine import EOS, requests
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tts_verifier.errors import InputError, RunWarning
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine, generate
from tts_verifier.verifiers.imagedoctor.engine.next_token import (
    draws_of,
    greedy,
    penalise,
    sample,
)
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.requests import (
    MAX_SEED,
    ForcedStep,
    GeneratedReply,
    GenerationLimits,
    GenerationRequest,
    Sampling,
)

ROWS = 4000


def seeded(model: ImageDoctorModel, *, copies: int = 2) -> list[GenerationRequest]:
    """Each of the tiny requests with several seeds, as a group of samples has them."""
    return [
        dataclasses.replace(request, seed=100 * copy + i)
        for copy in range(copies)
        for i, request in enumerate(requests(model))
    ]


def kept_by_transformers(logits: torch.Tensor, setting: Sampling) -> torch.Tensor:
    """The probabilities after transformers' processors, in the order of its generate."""
    scores = TemperatureLogitsWarper(setting.temperature)(None, logits)
    if setting.top_k:
        scores = TopKLogitsWarper(setting.top_k)(None, scores)
    if setting.top_p < 1:
        scores = TopPLogitsWarper(setting.top_p)(None, scores)
    return scores.softmax(-1)


@pytest.mark.parametrize(
    "setting",
    [Sampling(), Sampling(0.6), Sampling(1.5, 5), Sampling(1.0, 0, 0.8), Sampling(0.9, 8, 0.7)],
    ids=str,
)
def test_tokens_are_as_frequent_as_transformers_makes_them_probable(setting: Sampling) -> None:
    logits = torch.randn(1, 16, generator=torch.Generator().manual_seed(1)) * 2
    probs = kept_by_transformers(logits, setting)[0]
    draws = torch.from_numpy(draws_of(range(ROWS), 4))[:, 3]
    drawn = sample(logits.expand(ROWS, -1), draws, setting)
    counts = torch.bincount(drawn, minlength=16)
    assert not counts[probs == 0].any()
    sigma = (ROWS * probs * (1 - probs)).sqrt()
    assert ((counts - ROWS * probs).abs() <= 3 * sigma + 1e-3).all()


@pytest.mark.parametrize(
    "limits",
    mostly_slow(
        itertools.product([0, 1, 30, 5000], [1.0, 0.9, 1e-6]),
        quick=[(0, 0.9), (1, 1.0), (30, 0.9), (5000, 1e-6)],
    ),
)
def test_the_tokens_that_stay_are_those_of_transformers(limits: tuple[int, float]) -> None:
    setting = Sampling(0.8, *limits)
    logits = torch.randn(8, 1000, generator=torch.Generator().manual_seed(2)) * 3
    probs = kept_by_transformers(logits, setting)
    # Draws on an even grid meet every token that is probable enough.
    steps = 512
    grid = torch.stack([torch.zeros(steps), (torch.arange(steps) + 0.5) / steps], 1)
    for row in range(8):
        drawn = sample(logits[row].expand(steps, -1), grid, setting)
        counts = torch.bincount(drawn, minlength=1000)
        assert ((counts / steps - probs[row]).abs() <= 1.01 / steps).all()


def test_a_vocabulary_of_several_blocks_is_drawn_evenly() -> None:
    logits = torch.zeros(ROWS, 3 * 4096 + 17)
    drawn = sample(logits, torch.from_numpy(draws_of(range(ROWS), 1))[:, 0], Sampling())
    counts = torch.bincount(drawn // 4096, minlength=4)
    share = torch.tensor([4096, 4096, 4096, 17]) / logits.shape[1]
    assert ((counts - ROWS * share).abs() <= 3 * (ROWS * share * (1 - share)).sqrt()).all()
    assert len(drawn.unique()) > ROWS * 0.8


def test_draws_depend_on_the_seed_and_on_no_length() -> None:
    few, many = draws_of([3, MAX_SEED], 4), draws_of([0, MAX_SEED, 3], 9)
    assert np.array_equal(few[0], many[2, :4])
    assert np.array_equal(few[1], many[1, :4])
    assert not np.array_equal(many[0], many[2])
    assert few.dtype == np.float32
    assert (few >= 0).all()
    assert (few < 1).all()
    # Values of the published generator, so that no version changes recorded replies.
    np.testing.assert_array_equal(draws_of([0], 1)[0, 0], FIRST_DRAWS)


FIRST_DRAWS = np.array([193722, 4052523], np.float32) / 2**24


def same(a: GeneratedReply, b: GeneratedReply) -> bool:
    return (a.ids, a.end, a.has_map) == (b.ids, b.end, b.has_map)


@pytest.mark.parametrize(
    "setting",
    [Sampling(1.5, 40, 0.95), pytest.param(Sampling(1.2), marks=pytest.mark.slow)],
    ids=str,
)
def test_the_same_seed_gives_the_same_reply_in_any_batch(
    model: ImageDoctorModel, setting: Sampling
) -> None:
    limits = GenerationLimits(24, (EOS,), 1.05, sampling=setting, log_probs=True)
    prompts = seeded(model)
    alone = [generate(model, [request], limits)[0] for request in prompts]
    assert len({tuple(reply.ids) for reply in alone}) > 6
    for sequences, order in ((10, 1), (10, -1), (3, 1), (4, -1)):
        engine = Engine(model, limits, sequences=sequences)
        replies = dict(engine.replies(prompts[::order]))
        for i, reply in enumerate(alone[::order]):
            assert same(replies[i], reply)
            np.testing.assert_allclose(replies[i].log_probs, reply.log_probs, atol=1e-4)
    longer = dataclasses.replace(limits, max_new_tokens=30)
    for reply, long in zip(alone, generate(model, prompts, longer), strict=True):
        assert long.ids[: len(reply.ids)] == reply.ids


def test_memory_that_runs_out_changes_no_drawn_reply(
    model: ImageDoctorModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = GenerationLimits(24, (EOS,), sampling=Sampling(1.2))
    prompts = seeded(model)
    expected = generate(model, prompts, limits)
    calls = 0

    def runs_out_later(scores: torch.Tensor, draws: torch.Tensor, setting: Sampling) -> Any:
        nonlocal calls
        calls += 1
        if len(scores) > 3 and calls > 5:
            raise torch.OutOfMemoryError
        return sample(scores, draws, setting)

    module = "tts_verifier.verifiers.imagedoctor.engine.decode_step.sample"
    monkeypatch.setattr(module, runs_out_later)
    engine = Engine(model, limits, sequences=8)
    with pytest.warns(RunWarning, match="Memory ran out"):
        replies = dict(engine.replies(prompts))
    assert engine.sequences < 4
    assert all(same(replies[i], reply) for i, reply in enumerate(expected))


def teacher_forced(
    model: ImageDoctorModel, request: GenerationRequest, reply: GeneratedReply
) -> torch.Tensor:
    """Logits that predict the tokens of a reply, its end included."""
    completion = [*reply.ids, *([reply.end] if reply.end is not None else [])]
    ids = torch.tensor([[*request.ids, *completion]])
    pixels = torch.from_numpy(request.patches)
    with torch.no_grad():
        out = model(ids, pixels, [(1, *request.grid)])
    return out.logits[0, len(request.ids) - 1 : -1].float(), torch.tensor(completion)


@pytest.mark.parametrize(
    ("setting", "penalty"),
    [(None, 1.0), (None, 1.3), (Sampling(), 1.0), (Sampling(0.7, 20, 0.9), 1.2)],
    ids=str,
)
def test_log_probabilities_are_those_of_a_teacher_forced_pass(
    model: ImageDoctorModel, setting: Sampling | None, penalty: float
) -> None:
    limits = GenerationLimits(24, (EOS,), penalty, sampling=setting, log_probs=True)
    prompts = seeded(model)
    engine = Engine(model, limits, sequences=4)
    replies = dict(engine.replies(prompts))
    ends = set()
    for i, request in enumerate(prompts):
        logits, completion = teacher_forced(model, request, replies[i])
        temperature = setting.temperature if setting else 1.0
        expected = (logits / temperature).log_softmax(-1).gather(1, completion[:, None])[:, 0]
        np.testing.assert_allclose(replies[i].log_probs, expected, atol=1e-4)
        assert len(replies[i].log_probs) == len(replies[i].ids) + replies[i].ended
        assert replies[i].ended == (replies[i].end == EOS)
        ends.add(replies[i].end)
    assert EOS in ends


def test_the_penalty_comes_before_the_temperature(model: ImageDoctorModel) -> None:
    request = requests(model)[0]
    limits = GenerationLimits(6, (), 1.7, sampling=Sampling(1e-6))
    cold = generate(model, [request], limits)[0]
    assert cold.ids == generate(model, [request], GenerationLimits(6, (), 1.7))[0].ids
    warm = dataclasses.replace(limits, sampling=Sampling(0.9, 30, 0.9))
    reply = generate(model, [request], warm)[0]
    logits, completion = teacher_forced(model, request, reply)
    draws = torch.from_numpy(draws_of([0], 6))
    used = torch.zeros(1, logits.shape[1], dtype=torch.bool)
    used[0, list(request.ids)] = True
    for i, token in enumerate(completion.tolist()):
        assert sample(penalise(logits[i : i + 1], used, 1.7), draws[:, i], warm.sampling) == token
        used[0, token] = True


def test_temperature_0_and_recording_leave_greedy_as_it_is(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(24, (EOS,), 1.05)
    expected = generate(model, requests(model), limits)
    for changed in (
        dataclasses.replace(limits, sampling=Sampling(0.0, 5, 0.5)),
        dataclasses.replace(limits, log_probs=True),
    ):
        replies = generate(model, seeded(model, copies=1), changed)
        for reply, old in zip(replies, expected, strict=True):
            assert same(reply, old)
            assert torch.equal(reply.map_states, old.map_states)
    assert all(reply.log_probs is None for reply in expected)


def test_greedy_decoding_runs_not_one_operation_more(model: ImageDoctorModel) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Operations(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    def operations(limits: GenerationLimits) -> list[str]:
        engine = Engine(model, limits, sequences=2)
        list(engine.replies(requests(model)[:2]))
        with torch.inference_mode(), Operations() as counted:
            engine.decode_step(2, 60)
        return counted.names

    plain = operations(GenerationLimits(4, (EOS,)))
    assert plain == operations(GenerationLimits(4, (EOS,), sampling=Sampling(0.0)))
    drawn = operations(GenerationLimits(4, (EOS,), sampling=Sampling()))
    assert not any("cumsum" in name or "softmax" in name for name in plain if "scaled" not in name)
    assert any("cumsum" in name for name in drawn)


def test_a_forced_step_draws_among_its_choices(model: ImageDoctorModel) -> None:
    steps = (ForcedStep((48, 49, 50), (10, 11)), ForcedStep(), ForcedStep((60, 61), (12,)))
    limits = GenerationLimits(6, (), forced_steps=steps, sampling=Sampling(3.0), log_probs=True)
    request = requests(model)[1]
    prompts = [dataclasses.replace(request, seed=seed) for seed in range(12)]
    engine = Engine(model, limits, sequences=5)
    for _ in range(2):
        replies = dict(engine.replies(prompts))
        for i, prompt in enumerate(prompts):
            reply = replies[i]
            assert reply.ids[0] in (48, 49, 50)
            assert reply.ids[1:3] == [10, 11]
            assert reply.ids[4] in (60, 61)
            assert list(np.isnan(reply.log_probs)) == [False, True, True, False, False, True]
            logits, completion = teacher_forced(model, prompt, reply)
            expected = (logits / 3).log_softmax(-1).gather(1, completion[:, None])[:, 0].numpy()
            chosen = [0, 3, 4]
            np.testing.assert_allclose(reply.log_probs[chosen], expected[chosen], atol=1e-4)
        assert len({tuple(reply.ids) for reply in replies.values()}) > 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0 or a finite number of at least 1e-06"),
        ({"temperature": 1e-9}, "temperature must be .* got 1e-09"),
        ({"temperature": math.nan}, "temperature must be .* got nan"),
        ({"temperature": math.inf}, "temperature must be .* got inf"),
        ({"temperature": "hot"}, "temperature must be .* got 'hot'"),
        ({"top_k": -1}, "top_k must be a whole number of at least 0, got -1"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"top_k": True}, "top_k must be a whole number"),
        ({"top_p": 0}, "top_p must be a number above 0 and at most 1, got 0"),
        ({"top_p": 1.5}, "top_p must be .* got 1.5"),
        ({"top_p": None}, "top_p must be .* got None"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Sampling(**values)
    assert caught.value.argument == next(iter(values))


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1", None, True])
def test_a_seed_that_is_none_is_refused(model: ImageDoctorModel, seed: Any) -> None:
    with pytest.raises(InputError, match="A seed must be a whole number from 0 to"):
        dataclasses.replace(requests(model)[0], seed=seed)


def test_a_seed_may_be_a_number_of_numpy(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(8, (), sampling=Sampling())
    request = requests(model)[0]
    replies = generate(
        model, [dataclasses.replace(request, seed=seed) for seed in (np.uint64(7), 7)], limits
    )
    assert replies[0].ids == replies[1].ids


def test_a_choice_beside_sampling_is_refused(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(4, (EOS,), sampling=Sampling())
    with pytest.raises(InputError, match="either chosen by `choose` or drawn"):
        Engine(model, limits, sequences=1, choose=lambda scores: greedy(scores))
