from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tts_verifier.errors import CheckpointError, InputError
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import (
    find_checkpoint,
    load_checkpoint,
    load_model,
    read_limits,
)
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig


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
