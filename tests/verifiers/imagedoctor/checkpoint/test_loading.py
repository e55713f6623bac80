from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tts_verifier.errors import CheckpointError, InputError
from tts_verifier.verifiers.imagedoctor.checkpoint.limits import read_limits
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import (
    find_checkpoint,
    load_checkpoint,
    load_model,
)
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.text import PromptTokenizer


def test_casting_the_model_leaves_rotary_frequencies_in_float32(original: Path) -> None:
    model = load_model(original)
    before = model.model.rotary_emb.inv_freq.clone()
    assert torch.equal(model.to(torch.bfloat16).model.rotary_emb.inv_freq, before)


def test_a_loaded_model_can_be_trained(original: Path) -> None:
    model = load_model(original)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(
        p.requires_grad for p in load_checkpoint(original, device="cpu").model.parameters()
    )


def test_a_missing_or_damaged_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"needs a config.json"):
        load_model(tmp_path)
    for text, message in (("{", "must be a JSON object"), ("[]", "it is a list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path)


def test_generation_settings_keep_penalty_and_end_tokens(folder: Path) -> None:
    config = ImageDoctorConfig.from_folder(folder)
    path = folder / "generation_config.json"
    path.write_text('{"repetition_penalty": 1.05, "eos_token_id": [258, 256], "do_sample": true}')
    assert read_limits(folder, config).penalty == 1.05
    assert read_limits(folder, config).eos == (256, 258)
    path.write_text("[")
    with pytest.raises(CheckpointError, match="must be a JSON object"):
        read_limits(folder, config)
    path.unlink()
    assert read_limits(folder, config).max_new_tokens == 2048
    assert read_limits(folder, config).penalty == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_new_tokens", v) for v in (0, -1, 10**12, "5", True, 1.5, [1])),
        *(("repetition_penalty", v) for v in (0, -1.0, "1", True, 10**400, 1e300)),
        *(("eos_token_id", v) for v in (-1, 10**9, "x", [1, "x"], {}, True)),
    ],
)
def test_a_limit_that_cannot_be_used_is_refused_by_its_name(
    folder: Path, field: str, value: object
) -> None:
    config = ImageDoctorConfig.from_folder(folder)
    (folder / "generation_config.json").write_text(json.dumps({field: value}))
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {field} must be "):
        read_limits(folder, config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("input_size", v) for v in (10**9, -5, "512", True, 1.5)),
        *(("size", {"shortest_edge": v}) for v in (10**15, "x", -1)),
        *(("image_mean", v) for v in ([1, 2], [math.nan] * 3, "abc", [10**400] * 3, 5)),
        *(("image_std", v) for v in ([0, 1, 1], [-1, 1, 1])),
        *(("rescale_factor", v) for v in (-1, "1", math.inf)),
        ("size", "large"),
        ("image_processor", [1]),
    ],
)
def test_a_processor_of_absurd_values_is_refused(folder: Path, field: str, value: object) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(CheckpointError, match="must describe an image processor"):
        load_checkpoint(folder, device="cpu")


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "5", "{}", '{"model": 5}', '{"a":' * 50_000),
        '{"version": "1.0", "added_tokens": {}, "model": {"type": "BPE", "vocab": {}}}',
        '{"version": "1.0", "added_tokens": [], "model": {"type": "Other", "vocab": {}}}',
    ],
)
def test_a_tokenizer_of_odd_content_is_refused(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_checkpoint(folder, device="cpu")


def test_a_tokenizer_with_ids_beyond_the_vocabulary_is_refused(folder: Path) -> None:
    config = ImageDoctorConfig.from_folder(folder)
    small = replace(config, text={**config.text, "vocab_size": 200})
    with pytest.raises(CheckpointError, match=r"must have ids below config.json's vocab_size 200"):
        PromptTokenizer.from_folder(folder, small)


def test_a_path_and_a_tilde_are_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_checkpoint(f"~/{folder.name}") == folder
    assert find_checkpoint(folder) == folder
    with pytest.raises(CheckpointError, match="is none of them"):
        find_checkpoint("../no-such-folder")


def test_names_that_are_nothing_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is none of them"):
        find_checkpoint("no-such-folder")
    with pytest.raises(CheckpointError, match="is none of them"):
        find_checkpoint(str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match=r"nobody/nothing \(revision v1\) is not in the offl"):
        find_checkpoint("nobody/nothing", revision="v1", offline=True)


def test_an_unknown_dtype_is_an_error(original: Path) -> None:
    with pytest.raises(InputError, match=r"dtype must be float32, .*, got 'int7'"):
        load_checkpoint(original, dtype="int7", device="cpu")
