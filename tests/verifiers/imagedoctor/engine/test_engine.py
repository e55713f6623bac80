"""The batched engine against transformers' own generate, and against itself one by one."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import mostly_slow
from tiny_engine import EOS, GRIDS, requests
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLVisionConfig,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

from tts_verifier.errors import RunWarning
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_model
from tts_verifier.verifiers.imagedoctor.checkpoint.save import save_model
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine, generate
from tts_verifier.verifiers.imagedoctor.engine.heatmaps import MapDecoder, MapQueue, decode_maps
from tts_verifier.verifiers.imagedoctor.engine.next_token import greedy
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.model.quantise import balance_keys
from tts_verifier.verifiers.imagedoctor.model.vision import blocks_of, features
from tts_verifier.verifiers.imagedoctor.requests import (
    ForcedStep,
    GeneratedReply,
    GenerationLimits,
    Sampling,
)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


def stock(model: ImageDoctorModel) -> Qwen2_5_VLForConditionalGeneration:
    config = model.config
    whole = Qwen2_5_VLConfig(
        text_config=config.text_config(),
        vision_config=config.vision_config(),
        image_token_id=config.image_token_id,
        tie_word_embeddings=False,
    )
    built = Qwen2_5_VLForConditionalGeneration(whole).eval()
    built.model.visual.load_state_dict(model.visual.state_dict())
    built.model.language_model.load_state_dict(model.model.state_dict())
    built.lm_head.load_state_dict(model.lm_head.state_dict())
    return built


def test_levels_are_looked_up_beside_patches_of_other_requests(model: ImageDoctorModel) -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((3, 256)).astype(np.float32)
    levels = [rng.integers(0, 256, (h * w, 588), np.uint8) for h, w in GRIDS]
    channels = np.arange(3).repeat(196)
    # Each of three channels has two equal frames.
    patches = [table[channels, part].reshape(-1, 3, 1, 196).repeat(2, axis=2) for part in levels]
    plain = [
        replace(request, patches=part.reshape(len(part), -1))
        for request, part in zip(requests(model), patches, strict=True)
    ]
    mixed = [
        replace(request, patches=part, level_values=table) if i in (0, 1, 3) else request
        for i, (request, part) in enumerate(zip(plain, levels, strict=True))
    ]
    limits = GenerationLimits(6, (EOS,))
    expected, found = generate(model, plain, limits), generate(model, mixed, limits)
    for one, other in zip(expected, found, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.visual, other.visual)
    # Of the same levels, other values make another image.
    brighter = replace(mixed[0], level_values=table + 1)
    first, second = generate(model, [mixed[0], brighter], limits)
    assert torch.equal(first.visual, expected[0].visual)
    assert not torch.allclose(first.visual, second.visual)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_tokens_and_states_are_those_of_transformers_one_by_one(
    model: ImageDoctorModel, penalty: float
) -> None:
    reference = stock(model)
    prompts = requests(model)
    replies = generate(model, prompts, GenerationLimits(24, (EOS,), penalty))
    kinds = (model.config.misalignment_token_id, model.config.artifact_token_id)
    lengths, maps = set(), 0
    for request, reply in zip(prompts, replies, strict=True):
        ids = torch.tensor([request.ids])
        out = reference.generate(
            input_ids=ids,
            pixel_values=torch.tensor(request.patches),
            image_grid_thw=torch.tensor([[1, *request.grid]]),
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            max_new_tokens=24,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=EOS,
            pad_token_id=0,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        new = out.sequences[0, ids.shape[1] :].tolist()
        assert reply.ids == [t for t in new if t != EOS]
        assert reply.ended == (EOS in new)
        lengths.add(len(new))
        for k, kind in enumerate(kinds):
            assert reply.has_map[k] == (kind in new)
            if kind in new:
                maps += 1
                state = out.hidden_states[new.index(kind)][-1][0, -1]
                close(reply.map_states[k], state)
    assert len(lengths) > 2, "sequences should end at different steps"
    assert maps > 2, "replies should hold heatmap tokens"


def test_a_reply_depends_on_neither_its_companions_nor_its_place(model: ImageDoctorModel) -> None:
    prompts = requests(model)
    limits = GenerationLimits(24, (EOS,), 1.05)
    together = generate(model, prompts, limits)
    backwards = generate(model, prompts[::-1], limits)[::-1]
    alone = [generate(model, [request], limits)[0] for request in prompts]
    for whole, back, single in zip(together, backwards, alone, strict=True):
        assert whole.ids == back.ids == single.ids
        assert whole.has_map == back.has_map == single.has_map
        for other in (back, single):
            close(whole.map_states, other.map_states)
            close(whole.visual, other.visual)


def test_replies_to_one_prompt_share_its_prefill(
    model: ImageDoctorModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third, *_ = requests(model)
    limits = GenerationLimits(12, (EOS,), 1.3, sampling=Sampling(temperature=1.5))
    group = [replace(second, seed=seed) for seed in range(3)]
    queue = [first, group[0], group[1], third, group[2]]
    alone = [generate(model, [request], limits)[0] for request in queue]
    images: list[int] = []
    whole = model.visual_features
    monkeypatch.setattr(model, "visual_features", lambda *a: images.append(len(a[1])) or whole(*a))
    for reply, expected in zip(generate(model, queue, limits), alone, strict=True):
        assert reply.ids == expected.ids
        close(reply.map_states, expected.map_states)
        close(reply.visual, expected.visual)
    assert images == [3]
    assert len({tuple(reply.ids) for reply in alone}) == 5


@pytest.mark.parametrize("sequences", mostly_slow([1, 2, 3], quick=[2]))
def test_refilled_sequences_generate_what_they_would_alone(
    model: ImageDoctorModel, sequences: int
) -> None:
    prompts = requests(model) * 2
    limits = GenerationLimits(24, (EOS,), 1.05, (tuple(range(48, 58)), (48, 49)))
    engine = Engine(model, limits, sequences=sequences)
    for _ in range(2):
        refilled = dict(engine.replies(iter(prompts)))
        assert sorted(refilled) == list(range(len(prompts)))
        for i, request in enumerate(prompts):
            alone = generate(model, [request], limits)[0]
            assert refilled[i].ids == alone.ids
            assert refilled[i].ended == alone.ended
            assert refilled[i].has_map == alone.has_map
            torch.testing.assert_close(
                refilled[i].map_states, alone.map_states, atol=2e-5, rtol=1e-5
            )
            np.testing.assert_allclose(refilled[i].probs, alone.probs, atol=1e-5)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_forced_tokens_count_as_if_they_had_been_chosen(
    model: ImageDoctorModel, penalty: float
) -> None:
    kinds = (model.config.misalignment_token_id, model.config.artifact_token_id)
    for request, free in zip(
        requests(model),
        generate(model, requests(model), GenerationLimits(12, (), penalty)),
        strict=True,
    ):
        places = [free.ids.index(kind) if kind in free.ids else 99 for kind in kinds]
        parts = (free.ids[0:3], free.ids[3:4], free.ids[4:9], free.ids[9:12])
        steps = tuple(ForcedStep((part[0], 300), tuple(part[1:])) for part in parts)
        limits = GenerationLimits(12, (), penalty, forced_steps=steps)
        for sequences in (1, 3):
            engine = Engine(model, limits, sequences=sequences)
            replies = dict(engine.replies([request] * 4))
            for reply in (replies[i] for i in range(4)):
                assert reply.ids == free.ids
                assert reply.has_map == tuple(place < 12 for place in places)
                close(reply.map_states, free.map_states)


def test_running_out_of_memory_halves_the_sequences_and_warns_once(
    model: ImageDoctorModel,
) -> None:
    prompts, limits = requests(model), GenerationLimits(24, (EOS,))
    expected = [reply.ids for reply in generate(model, prompts, limits)]

    def fits_one_sequence(scores: torch.Tensor) -> torch.Tensor:
        if len(scores) > 1:
            raise torch.OutOfMemoryError
        return greedy(scores)

    engine = Engine(model, limits, sequences=5, choose=fits_one_sequence)
    with pytest.warns(RunWarning, match="Memory ran out with batch_size 5") as warned:
        replies = dict(engine.replies(prompts))
    assert len(warned) == 1
    assert engine.sequences == 1
    assert [replies[i].ids for i in range(len(prompts))] == expected


def test_a_single_sequence_that_does_not_fit_is_the_error_itself(model: ImageDoctorModel) -> None:
    def fits_none(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    engine = Engine(model, GenerationLimits(4, (EOS,)), sequences=1, choose=fits_none)
    with pytest.raises(torch.OutOfMemoryError):
        dict(engine.replies(requests(model)))


def test_a_longer_prompt_that_comes_later_grows_the_kv_cache_under_running_sequences(
    model: ImageDoctorModel,
) -> None:
    limits = GenerationLimits(24, (), 1.05)
    short, long = requests(model)[0], requests(model)[4]
    long = dataclasses.replace(long, ids=[*long.ids, *[7] * 120])
    prompts = [short, short, short, short, long, long]
    alone = [generate(model, [request], limits)[0] for request in prompts]
    engine = Engine(model, limits, sequences=4)
    replies = dict(engine.replies(prompts))
    assert [replies[i].ids for i in range(len(prompts))] == [reply.ids for reply in alone]
    assert engine.decode_step.buffers.capacity > 128


def test_fused_weights_keep_the_state_dict_and_can_be_saved_and_changed(
    model: ImageDoctorModel, tmp_path: Path
) -> None:
    before = {name: t.clone() for name, t in model.state_dict().items()}
    generate(model, requests(model)[:1], GenerationLimits(1, (EOS,)))
    after = model.state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    save_model(model, tmp_path)
    saved = load_model(tmp_path).state_dict()
    assert all(
        torch.equal(saved[name], t) for name, t in before.items() if name != "lm_head.weight"
    )
    changed = load_model(tmp_path).requires_grad_(False)
    old = generate(changed, requests(model)[:1], GenerationLimits(9, (EOS,)))
    for layer in changed.model.layers:
        layer.self_attn.v_proj.weight.mul_(-3)
    fresh = ImageDoctorModel(changed.config).requires_grad_(False)
    fresh.load_state_dict(changed.state_dict())
    new = generate(changed, requests(model)[:1], GenerationLimits(9, (EOS,)))
    assert new[0].ids == generate(fresh, requests(model)[:1], GenerationLimits(9, (EOS,)))[0].ids
    assert not torch.equal(new[0].map_states, old[0].map_states) or new[0].ids != old[0].ids


def test_maps_do_not_depend_on_their_companions(model: ImageDoctorModel) -> None:
    g = torch.Generator().manual_seed(0)
    states, visual = torch.randn(5, 2, 64, generator=g), torch.randn(5, 6, 64, generator=g)
    empty = np.zeros((0, 10), np.float32)
    queue = MapQueue(MapDecoder(model))
    for i in range(5):
        queue.add(i, GeneratedReply([], True, states[i], (True, i != 3), visual[i], empty), (4, 6))
    maps = queue.finish()
    assert list(maps[3]) == ["misalignment"]
    for i in range(5):
        for k, name in enumerate(maps[i]):
            alone = decode_maps(model, states[i, k : k + 1], visual[i : i + 1], (2, 3))[0]
            assert alone.shape == (32, 48)
            assert 0 <= alone.min() <= alone.max() <= 1
            np.testing.assert_allclose(maps[i][name], alone, atol=1e-5)


@pytest.mark.parametrize("grids", [[(8, 8)] * 3, [(8, 8), (6, 10), (2, 2), (8, 8), (14, 4)]])
def test_batched_vision_equals_the_stock_tower(
    model: ImageDoctorModel, grids: list[tuple[int, int]]
) -> None:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randn(sum(h * w for h, w in grids), 1176, generator=g)
    with torch.no_grad():
        expected = stock(model).model.visual(pixels, torch.tensor([(1, *g) for g in grids]))
        got = features(model.visual, pixels, grids)
    close(got, expected.pooler_output)


def test_filling_up_ragged_widths_changes_neither_features_nor_weights() -> None:
    config = dict(depth=2, hidden_size=32, intermediate_size=45, num_heads=2, out_hidden_size=16)
    config |= {"fullatt_block_indexes": [1], "window_size": 56}
    torch.manual_seed(0)
    tower = Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**config)).eval()
    pixels, grids = torch.randn(2 * 80, 1176), [(8, 10)] * 2
    before = {name: t.clone() for name, t in tower.state_dict().items()}
    with torch.no_grad():
        expected = features(tower, pixels, grids)
        for _ in range(2):
            blocks = blocks_of(tower, fuse=True)
            assert blocks[0].gate_up.weight.shape == (96, 32)
            assert (
                blocks[0].gate_up.weight.data_ptr()
                == tower.blocks[0].mlp.gate_proj.weight.data_ptr()
            )
            torch.testing.assert_close(features(tower, pixels, grids, blocks), expected)
    for name, tensor in tower.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_features_can_be_trained_after_they_were_used_for_inference(
    model: ImageDoctorModel, tmp_path: Path
) -> None:
    generate(model, requests(model)[:1], GenerationLimits(1, (EOS,)))
    patch = torch.randn(64, 1176, requires_grad=True)
    features(model.visual, patch, [(8, 8)]).sum().backward()
    assert patch.grad is not None


def test_a_reply_beyond_the_first_block_grows_the_kv_cache(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(560, ())
    request = requests(model)[0]
    ids = torch.tensor([request.ids])
    expected = stock(model).generate(
        input_ids=ids,
        pixel_values=torch.tensor(request.patches),
        image_grid_thw=torch.tensor([[1, *request.grid]]),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        max_new_tokens=560,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    engine = Engine(model, limits, sequences=2)
    (_, reply), *_ = engine.replies([request])
    assert reply.ids == expected[0, ids.shape[1] :].tolist()
    assert engine.decode_step.buffers.capacity >= ids.shape[1] + 560


def test_a_longer_queue_gets_more_sequences_and_a_shorter_one_keeps_them(
    model: ImageDoctorModel,
) -> None:
    prompts, limits = requests(model), GenerationLimits(8, (EOS,))
    expected = [reply.ids for reply in generate(model, prompts, limits)]
    engine = Engine(model, limits)
    sequences = []
    for count in (3, 1, len(prompts), 2):
        replies = dict(engine.replies(prompts[:count], expected=count))
        assert [replies[i].ids for i in range(count)] == expected[:count]
        sequences.append(engine.decode_step.buffers.sequences)
    assert sequences == [4, 4, 8, 8]


def test_balanced_keys_leave_the_replies_and_lose_their_large_channels(
    model: ImageDoctorModel,
) -> None:
    model = copy.deepcopy(model)
    keys = model.model.layers[0].self_attn.k_proj
    with torch.no_grad():
        keys.bias[1::3] += 60.0
    before = [reply.ids for reply in generate(model, requests(model), GenerationLimits(12, (EOS,)))]
    spread = keys.bias.abs().max() / keys.bias.abs().median()
    for layer in model.model.layers:
        balance_keys(layer, int(model.config.text["num_key_value_heads"]))
    after = [reply.ids for reply in generate(model, requests(model), GenerationLimits(12, (EOS,)))]
    assert after == before
    assert keys.bias.abs().max() / keys.bias.abs().median() < spread / 8
