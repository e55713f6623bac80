from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_imagedoctor import all_equal, example, outputs_of

from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_model
from tts_verifier.verifiers.imagedoctor.checkpoint.save import save_model
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel


def newer(name: str) -> str:
    if name.startswith("visual."):
        return "model." + name
    return name.replace("model.", "model.language_model.", 1) if name[:6] == "model." else name


def test_old_names_new_names_and_a_resaved_checkpoint_give_bit_equal_outputs(
    original: Path, folder: Path, tmp_path: Path
) -> None:
    first = load_model(original)
    expected = outputs_of(first)
    renamed = {newer(name): t for name, t in load_file(folder / "model.safetensors").items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    assert all_equal(outputs_of(load_model(folder)), expected)
    save_model(first, tmp_path / "again", shard_bytes=200_000)
    again = tmp_path / "again"
    assert len(list(again.glob("*.safetensors"))) > 3
    assert all(p.stat().st_size < 230_000 for p in again.glob("*.safetensors"))
    assert all_equal(outputs_of(load_model(again)), expected)
    second = load_model(again)
    save_model(second, tmp_path / "third", shard_bytes=200_000)
    for path in again.iterdir():
        assert path.read_bytes() == (tmp_path / "third" / path.name).read_bytes()


def test_a_random_model_of_other_widths_survives_saving_and_loading(tmp_path: Path) -> None:
    raw = example().config("tiny")
    raw["tie_word_embeddings"] = False
    raw["heatmap_config"] |= {"width": 24, "heads": 3, "depth": 1, "stages": [8, 8, 8, 4]}
    torch.manual_seed(0)
    model = ImageDoctorModel(ImageDoctorConfig.from_dict(raw))
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert all_equal(outputs_of(loaded), outputs_of(model))
    assert loaded.config.heatmap == model.config.heatmap
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


def test_weights_may_be_stored_in_half_precision_and_computed_in_single(
    original: Path, tmp_path: Path
) -> None:
    save_model(load_model(original), tmp_path, dtype=torch.float16)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    model = load_model(tmp_path)
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32}
    save_model(model, tmp_path / "again", dtype=torch.float16)
    assert all_equal(outputs_of(load_model(tmp_path / "again")), outputs_of(model))
