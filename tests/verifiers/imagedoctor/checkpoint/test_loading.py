from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_imagedoctor import example

from tts_verifier.errors import CheckpointError, InputError
from tts_verifier.verifiers.imagedoctor.checkpoint.device_map import LayerDevices
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import (
    find_checkpoint,
    load_checkpoint,
    load_model,
    read_limits,
)
from tts_verifier.verifiers.imagedoctor.checkpoint.save import save_model
from tts_verifier.verifiers.imagedoctor.config import HeatmapConfig, ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel

MAKE = example()
GRIDS = [(1, 8, 4), (1, 6, 10)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    MAKE.make(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def outputs(model: ImageDoctorModel) -> list[torch.Tensor]:
    """Logits and a map of two images of other, non-square grids, in one padded batch."""
    g = torch.Generator().manual_seed(0)
    image = model.config.image_token_id
    ids = torch.randint(0, 256, (2, 40), generator=g)
    mask = torch.ones(2, 40)
    mask[0, :9] = 0
    for row, (_, h, w) in enumerate(GRIDS):
        ids[row, 12 : 12 + h * w // 4] = image
    pixels = torch.randn(sum(h * w for _, h, w in GRIDS), 1176, generator=g)
    with torch.no_grad():
        out = model.eval()(ids, pixels, GRIDS, mask)
        grid_map = model.heatmap_logits(out.hidden[1, -1:], out.visual[None, 8:], (3, 5))
    assert grid_map.shape == (1, 48, 80)
    return [out.logits[0, 9:], out.logits[1], grid_map]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def newer(name: str) -> str:
    if name.startswith("visual."):
        return "model." + name
    return name.replace("model.", "model.language_model.", 1) if name[:6] == "model." else name


def test_old_names_new_names_and_a_resaved_checkpoint_give_bit_equal_outputs(
    original: Path, folder: Path, tmp_path: Path
) -> None:
    first = load_model(original)
    expected = outputs(first)
    rewrite(folder, {newer(name): t for name, t in weights_of(folder).items()})
    assert equal(outputs(load_model(folder)), expected)
    save_model(first, tmp_path / "again", shard_bytes=200_000)
    again = tmp_path / "again"
    assert len(list(again.glob("*.safetensors"))) > 3
    assert all(p.stat().st_size < 230_000 for p in again.glob("*.safetensors"))
    assert equal(outputs(load_model(again)), expected)
    second = load_model(again)
    save_model(second, tmp_path / "third", shard_bytes=200_000)
    for path in again.iterdir():
        assert path.read_bytes() == (tmp_path / "third" / path.name).read_bytes()


def test_a_random_model_of_other_widths_survives_saving_and_loading(tmp_path: Path) -> None:
    raw = MAKE.config("tiny")
    raw["tie_word_embeddings"] = False
    raw["heatmap_config"] |= {"width": 24, "heads": 3, "depth": 1, "stages": [8, 8, 8, 4]}
    torch.manual_seed(0)
    model = ImageDoctorModel(ImageDoctorConfig.from_dict(raw))
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert equal(outputs(loaded), outputs(model))
    assert loaded.config.heatmap == model.config.heatmap
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


def test_weights_may_be_stored_in_half_precision_and_computed_in_single(
    original: Path, tmp_path: Path
) -> None:
    save_model(load_model(original), tmp_path, dtype=torch.float16)
    assert {t.dtype for t in weights_of(tmp_path).values()} == {torch.float16}
    model = load_model(tmp_path)
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32}
    save_model(model, tmp_path / "again", dtype=torch.float16)
    assert equal(outputs(load_model(tmp_path / "again")), outputs(model))


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
    assert "1 mis-shaped: model.norm.weight is (3,), the config makes it (64,)." in message


def test_heads_that_the_config_does_not_state_must_be_official(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    del raw["heatmap_config"]
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"is \(1, 32\), the config makes it \(1, 768\)"):
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


def test_a_missing_or_damaged_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"needs a config.json"):
        load_model(tmp_path)
    for text, message in (("{", "must be a JSON object"), ("[]", "it is a list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path)


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


def test_layers_spread_over_devices_compute_the_same(original: Path) -> None:
    cpu = torch.device("cpu")
    spread = LayerDevices(cpu, 2, {"model.layers.1": "cpu"})
    assert equal(outputs(load_model(original, devices=spread)), outputs(load_model(original)))


def test_what_enters_a_layer_is_moved_to_its_device(original: Path) -> None:
    model = load_model(
        original, devices=LayerDevices(torch.device("cpu"), 2, {"model.layers.1": "meta"})
    )
    assert model.model.layers[0].mlp.up_proj.weight.device.type == "cpu"
    layer = model.model.layers[1]
    assert layer.mlp.up_proj.weight.device.type == "meta"
    angles = torch.ones(1, 3, 16)
    out = layer(torch.ones(1, 3, 64), attention_mask=None, position_embeddings=(angles, angles))
    assert out.device.type == "meta"


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ("balanced", r"device_map must be 'auto'.* got 'balanced'"),
        ({"visual": "cpu"}, r"places language layers only, model.layers.0 to model.layers.1"),
        ({"model.layers.2": "cpu"}, r"got 'model.layers.2'"),
    ],
)
def test_a_device_map_that_cannot_be_used_is_an_error(device_map: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LayerDevices(torch.device("cpu"), 2, device_map)
