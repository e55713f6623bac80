from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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


INTEGERS = [
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    *("vision_config.depth", "vision_config.hidden_size", "vision_config.intermediate_size"),
    *("vision_config.num_heads", "vision_config.in_channels", "vision_config.patch_size"),
    *("vision_config.spatial_merge_size", "vision_config.temporal_patch_size"),
    *("vision_config.tokens_per_second", "vision_config.window_size"),
    *("heatmap_config.width", "heatmap_config.depth", "heatmap_config.heads"),
    *("heatmap_config.mlp", "heatmap_config.mask_channels", "heatmap_config.text_hidden"),
    *("image_token_id", "vision_start_token_id", "misalignment_token_id", "artifact_token_id"),
]
NUMBERS = ["rope_theta", "rms_norm_eps", "initializer_range", "attention_dropout", "heatmap_weight"]
ABSURD = [10**7, 10**12, 10**400, -1, 1.5, math.nan, math.inf, "2", True, [2], {"a": 2}]


def changed(field: str, value: object) -> dict:
    """The tiny config with one field changed, also inside one of its tables."""
    raw = MAKE.config("tiny")
    *tables, name = field.split(".")
    for table in tables:
        raw[table] = dict(raw[table])
    (raw[tables[0]] if tables else raw)[name] = value
    return raw


@pytest.mark.parametrize("field", INTEGERS)
@pytest.mark.parametrize("value", [*ABSURD, None], ids=lambda v: str(v)[:12])
def test_a_size_of_no_model_is_refused_by_its_name(field: str, value: object) -> None:
    if field == "max_position_embeddings" and value == 10**7:
        return
    if field == "heatmap_config.text_hidden" and value is None:
        return
    with pytest.raises(CheckpointError, match=rf"^{field} must be ") as caught:
        ImageDoctorConfig.from_dict(changed(field, value))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, "1", True, [1], {}])
def test_a_number_that_is_none_is_refused_by_its_name(field: str, value: object) -> None:
    raw = MAKE.config("tiny") | {"rope_scaling": {"mrope_section": [4, 2, 2]}}
    with pytest.raises(CheckpointError, match=rf"^{field} must be a finite number"):
        ImageDoctorConfig.from_dict(raw | {field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_config": [1]}, "vision_config must be a table of keys, got"),
        ({"text_config": "x"}, "text_config must be a table of keys, got 'x'"),
        ({"heatmap_config": 5}, "heatmap_config must be a table of keys, got 5"),
        ({"rope_scaling": [1]}, "rope_scaling must be a table of keys"),
        ({"rope_scaling": {"mrope_section": "abc"}}, "mrope_section must be a list of at most 3"),
        ({"rope_scaling": {"mrope_section": [10**12] * 3}}, "mrope_section must be an integer"),
        ({"rope_scaling": {"mrope_section": [1] * 10**6}}, "mrope_section must be a list of at"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, got 'no'"),
        ({"eos_token_id": [1, 10**12]}, "eos_token_id must be an integer from 0 to"),
        ({"eos_token_id": list(range(5000))}, "eos_token_id must be a list of at most 1000"),
        ({"heatmap_config": {"stem": [10**12, 1]}}, r"heatmap_config\.stem must be an integer"),
        ({"heatmap_config": {"stages": "wide"}}, r"heatmap_config\.stages must be a list"),
        ({"vision_config": {"fullatt_block_indexes": [10**9]}}, "fullatt_block_indexes must be an"),
        ({"num_attention_heads": 3}, "num_attention_heads must divide"),
        ({"num_key_value_heads": 1000}, "num_key_value_heads must divide"),
    ],
)
def test_a_table_or_list_of_another_kind_is_refused_by_its_name(change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ImageDoctorConfig.from_dict(MAKE.config("tiny") | change)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.sampled_from([*INTEGERS, *NUMBERS, "rope_scaling", "vision_config", "hidden_act"]), JSON)
def test_any_value_is_read_or_refused(field: str, value: object) -> None:
    with contextlib.suppress(CheckpointError):
        ImageDoctorConfig.from_dict(changed(field, value))
