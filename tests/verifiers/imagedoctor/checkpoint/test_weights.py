from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tts_verifier.errors import CheckpointError
from tts_verifier.verifiers.imagedoctor.checkpoint import loading
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_checkpoint, load_model


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_unexpected_and_mis_shaped_tensors_are_all_listed(folder: Path) -> None:
    state = weights_of(folder)
    del state["heatmap.mask_tokens.weight"]
    del state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    state["heatmap.iou_token.weight"] = torch.zeros(1)
    state["model.norm.weight"] = torch.zeros(3)
    rewrite(folder, state)
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "2 missing: heatmap.mask_tokens.weight; prompt_encoder.pe_layer" in message
    assert "1 unexpected: heatmap.iou_token.weight." in message
    assert "1 mis-shaped: model.norm.weight is (3,), but the config makes it (64,)." in message


def test_heads_that_the_config_does_not_state_must_be_official(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    del raw["heatmap_config"]
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"is \(1, 32\), but the config makes it \(1, 768\)"):
        load_model(folder)


def test_a_tensor_under_both_names_is_an_error(folder: Path) -> None:
    state = weights_of(folder)
    rewrite(folder, {**state, "model.language_model.norm.weight": torch.zeros(64)})
    with pytest.raises(CheckpointError, match=r"holds model.norm.weight twice"):
        load_model(folder)


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights"):
        load_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"a pickle can run code.*pytorch_model.bin"):
        load_model(folder)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a\\..\\..\\x.safetensors"])
def test_an_index_that_names_a_file_outside_is_refused(folder: Path, name: str) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"must lie in its folder, but .* which is outside"):
        load_model(folder)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"]
)
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, file: str) -> None:
    (folder / file).rename(tmp_path / file)
    (folder / file).symlink_to(tmp_path / file)
    with pytest.raises(CheckpointError, match=rf"{file} is a link to .*Copy the file"):
        load_checkpoint(folder, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 1000}, r"^num_hidden_layers 1000 must fit the weights, which are"),
        ({"vocab_size": 2**22, "hidden_size": 2**16}, "^vocab_size x hidden_size must fit the we"),
        ({"intermediate_size": 2**20, "hidden_size": 2**16, "vocab_size": 300}, "^num_hidden_laye"),
    ],
)
def test_a_config_that_claims_more_than_the_files_hold_is_refused_before_anything_is_built(
    folder: Path, change: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = json.loads((folder / "config.json").read_text()) | change
    half = raw["hidden_size"] // raw["num_attention_heads"] // 2
    raw["rope_scaling"] = {"type": "default", "mrope_section": [half - 2, 1, 1]}
    raw["vision_config"]["out_hidden_size"] = raw["hidden_size"]
    (folder / "config.json").write_text(json.dumps(raw))
    monkeypatch.setattr(loading, "ImageDoctorModel", None)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (
            "vision_config",
            {"hidden_size": 2**15},
            r"^vision_config: \(hidden_size x spatial_merge_s",
        ),
        (
            "heatmap_config",
            {"stages": [8, 8, 2**16, 8]},
            "^heatmap_config: the largest of stem and",
        ),
    ],
)
def test_one_matrix_that_is_larger_than_all_weights_is_refused(
    folder: Path, section: str, change: dict, message: str
) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw[section] |= change
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_sizes_that_cannot_be_built_are_an_error_of_the_config(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(config: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(loading, "ImageDoctorModel", build)
    with pytest.raises(CheckpointError, match="must state sizes of which a model can be built; to"):
        load_model(folder)


def test_damaged_or_missing_weight_files_are_errors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match=r"must be a safetensors file"):
        load_model(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"files that are missing: model-1.safetensors"):
        load_model(folder)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match=r"must be a safetensors index"):
        load_model(folder)
