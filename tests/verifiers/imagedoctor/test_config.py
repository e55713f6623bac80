from __future__ import annotations

import pytest
import torch
from tiny_imagedoctor import example

from tts_verifier.errors import CheckpointError
from tts_verifier.verifiers.imagedoctor.config import HeatmapConfig, ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel

MAKE = example()


def test_the_released_config_is_read_with_the_official_dimensions() -> None:
    released = {
        "model_type": "ImageDoctor",
        "misalignment_token_id": 151665,
        "artifact_token_id": 151666,
        "heatmap_weight": 1,
        "rope_theta": 1e6,
        "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
        "vision_config": {"hidden_size": 1280, "in_chans": 3, "out_hidden_size": 2048},
        "use_cache": None,
    }
    config = ImageDoctorConfig.from_dict(released)
    with torch.device("meta"):
        model = ImageDoctorModel(config)
    new = sum(
        t.numel()
        for name, t in model.named_parameters()
        if not name.startswith(("visual.", "model.", "lm_head."))
    )
    assert new == 62_026_188
    assert config.heatmap == HeatmapConfig()
    assert config.tied


def test_flat_and_nested_configs_are_the_same() -> None:
    flat = MAKE.config("tiny")
    text = {k: flat[k] for k in MAKE.TINY if k not in ("vision_config", "heatmap_config")}
    text["rope_parameters"] = {**text.pop("rope_scaling"), "rope_theta": 1e6}
    text["eos_token_id"] = flat["eos_token_id"]
    text["bos_token_id"] = flat["bos_token_id"]
    nested = {k: v for k, v in flat.items() if k not in MAKE.TINY and k[:4] != "eos_"}
    nested |= {k: flat[k] for k in ("vision_config", "heatmap_config")}
    a, b = (ImageDoctorConfig.from_dict(raw) for raw in (flat, {**nested, "text_config": text}))
    assert (a.text, a.vision, a.heatmap) == (b.text, b.vision, b.heatmap)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_sliding_window": True}, "use_sliding_window must be false"),
        ({"rope_scaling": {"type": "yarn"}}, "rope type must be"),
        ({"rope_scaling": {"mrope_section": [1, 2, 3]}}, "half the head size 128"),
        ({"vision_config": {"out_hidden_size": 5}}, "must equal hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"image_token_id": 999_999}, "must be below vocab_size"),
        ({"heatmap_config": {"wdith": 3}}, r"unknown keys \['wdith'\]"),
        ({"heatmap_config": {"width": 100}}, "multiple of 2 \\* heads"),
        ({"heatmap_config": {"stages": [1, 2]}}, "stages 4"),
    ],
)
def test_a_config_that_cannot_be_built_is_an_error(change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ImageDoctorConfig.from_dict(change)
