"""Qwen2.5-VL read by ImageDoctor's kernels scores as transformers does, or is left to it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_imagedoctor import noise
from tiny_judges import save_judge

from tts_verifier.verifiers.vision_language.inference.qwen import can_read
from tts_verifier.verifiers.vision_language.inference.replies import answer_probabilities
from tts_verifier.verifiers.vision_language.vqascore import VQAScore

IMAGES = [noise(90, 60), noise(60, 100, 1), noise(30, 30, 2), noise(90, 60, 3)]
PROMPTS = ["a cat", "two dogs in front of a house on a hill", "snow", "Yes, a fox"]


@pytest.fixture
def judge(tmp_path: Path) -> VQAScore:
    return VQAScore(save_judge(tmp_path))


def scores(judge: VQAScore) -> list[float]:
    return [v.scores["vqascore"] for v in judge.verify(IMAGES, PROMPTS)]


@pytest.mark.parametrize("penalty", [None, 1.0, 1.7])
def test_scores_equal_those_of_generate(judge: VQAScore, penalty: float | None) -> None:
    model = judge.engine.model
    model.generation_config.repetition_penalty = penalty
    assert can_read(model)
    found = scores(judge)
    model.generation_config.suppress_tokens = []
    assert not can_read(model)
    assert found == pytest.approx(scores(judge), abs=1e-5)


def test_weights_that_are_cast_or_filled_anew_are_read_anew(judge: VQAScore) -> None:
    model = judge.engine.model
    before = scores(judge)
    model.lm_head.weight.data[:] = model.lm_head.weight.flip(0)
    model.model.visual.blocks[0].mlp.down_proj.weight.data *= 3
    model.double()
    found = scores(judge)
    assert found != pytest.approx(before, abs=1e-4)
    model.generation_config.suppress_tokens = []
    assert found == pytest.approx(scores(judge), abs=1e-5)


def spoil_adapter(model: Any) -> None:
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), model)


def spoil_hook(model: Any) -> None:
    model.model.visual.register_forward_hook(lambda *_: None)


def spoil_forward(model: Any) -> None:
    model.lm_head.forward = model.lm_head.forward


def spoil_dtype(model: Any) -> None:
    model.model.visual.bfloat16()


def spoil_mode(model: Any) -> None:
    with torch.inference_mode():
        for weight in model.parameters():
            weight.data = weight.clone()


def spoil_rope(model: Any) -> None:
    model.config.text_config.rope_parameters["rope_type"] = "yarn"


def spoil_windows(model: Any) -> None:
    model.config.text_config.layer_types[0] = "sliding_attention"


def spoil_generation(model: Any) -> None:
    model.generation_config.no_repeat_ngram_size = 2


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_adapter, spoil_hook, spoil_forward, spoil_dtype, spoil_mode, spoil_rope,
        spoil_windows, spoil_generation,
    ],
)  # fmt: skip
def test_another_model_than_the_released_one_is_left_to_transformers(
    judge: VQAScore, spoil: Any
) -> None:
    spoil(judge.engine.model)
    assert not can_read(judge.engine.model)


def test_another_family_is_left_to_transformers(tmp_path: Path) -> None:
    assert not can_read(VQAScore(save_judge(tmp_path, "qwen3_vl")).engine.model)


def test_no_questions_have_no_answers(judge: VQAScore) -> None:
    assert answer_probabilities(judge.engine, []) == []


def test_tensors_in_lists_and_other_values_reach_the_device(judge: VQAScore) -> None:
    given = {"pixel_values": [[torch.ones(2)], torch.zeros(3)], "names": ["a"], "none": None}
    found = judge.engine.upload(given)
    assert found["pixel_values"][0][0].tolist() == [1, 1]
    assert (found["names"], found["none"]) == (["a"], None)
