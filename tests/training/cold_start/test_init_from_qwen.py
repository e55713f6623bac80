from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tts_verifier import Verifier
from tts_verifier.errors import CheckpointError, InputError
from tts_verifier.training.cold_start.init_from_qwen import init_from_qwen
from tts_verifier.training.cold_start.network import copy_small_files
from tts_verifier.training.cold_start.stages import read_for_training
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_model

HEADS = {"width": 32, "heads": 4, "mlp": 32, "stem": [16, 8], "stages": [8, 8, 8, 8]}


@pytest.fixture(scope="module")
def made(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "doctor"
    init_from_qwen(model=str(stock), output=str(folder), heads=HEADS, dtype="float32")
    return folder


def test_the_result_is_an_image_doctor_that_verifies_and_can_be_trained(made: Path) -> None:
    verifier = Verifier.from_pretrained(str(made), answer_template=True)
    picture = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    (verdict,) = verifier.verify([picture], ["a black square"], detail="score")
    assert set(verdict.scores) >= {"semantic_alignment", "overall"}
    assert read_for_training(made).model.config.heatmap.width == 32


def test_both_tokens_are_really_added_with_the_mean_of_the_others(made: Path, stock: Path) -> None:
    config = json.loads((made / "config.json").read_text())
    ids = [config["misalignment_token_id"], config["artifact_token_id"]]
    assert ids == [263, 264]
    assert config["heatmap_weight"] == 1.0
    tokenizer = read_for_training(made).tokenizer
    assert tokenizer.decode(ids, special_tokens=True) == "<|misalignment|><|artifact|>"
    assert tokenizer.decode(ids) == ""
    embedding = load_model(made).model.embed_tokens.weight
    assert len(embedding) == 265
    mean = embedding[:263].mean(0)
    torch.testing.assert_close(embedding[ids], mean.expand(2, -1), atol=1e-6, rtol=0)
    stated = json.loads((made / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert stated["264"]["content"] == "<|artifact|>"


def test_the_stock_weights_stay_as_they_are(made: Path, stock: Path) -> None:
    from safetensors.torch import load_file

    theirs = load_file(stock / "model.safetensors")
    ours = load_model(made).state_dict()
    name = "layers.1.self_attn.q_proj.weight"
    theirs_name = next(n for n in theirs if n.endswith(name) and "visual" not in n)
    assert torch.equal(ours[f"model.{name}"], theirs[theirs_name])
    embedding = next(t for n, t in theirs.items() if "embed_tokens" in n)
    assert torch.equal(ours["model.embed_tokens.weight"][:263], embedding)


def test_what_cannot_be_used_is_refused(made: Path, stock: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="The checkpoint is an ImageDoctor already"):
        init_from_qwen(model=str(made), output=str(tmp_path / "a"))
    with pytest.raises(InputError, match="output must be new or empty"):
        init_from_qwen(model=str(stock), output=str(stock))
    with pytest.raises(InputError, match="dtype must be bfloat16, float16 or float32, got 'int8'"):
        init_from_qwen(model=str(stock), output=str(tmp_path / "a"), dtype="int8")
    other = tmp_path / "other"
    shutil.copytree(stock, other)
    (other / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match=r"must be that of a stock Qwen2\.5-VL"):
        init_from_qwen(model=str(other), output=str(tmp_path / "a"))
    (other / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json must be a JSON object"):
        init_from_qwen(model=str(other), output=str(tmp_path / "a"))
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="must be a fast tokenizer's file"):
        init_from_qwen(model=str(other), output=str(tmp_path / "a"))
    (other / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        init_from_qwen(model=str(other), output=str(tmp_path / "a"))


def test_small_files_are_copied_from_inside_the_checkpoint_only(
    stock: Path, tmp_path: Path
) -> None:
    other, secret = tmp_path / "other", tmp_path / "secret.json"
    shutil.copytree(stock, other)
    secret.write_text("{}")
    (other / "notes.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match="is a link to"):
        copy_small_files(other, tmp_path / "copy")
    (other / "notes.json").unlink()
    os.mkfifo(other / "notes.json")
    with pytest.raises(CheckpointError, match="must be a regular file"):
        copy_small_files(other, tmp_path / "copy")


def test_a_stock_checkpoint_cannot_be_trained_as_it_is(stock: Path) -> None:
    with pytest.raises((InputError, CheckpointError)):
        read_for_training(stock)
