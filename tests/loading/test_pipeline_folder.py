"""Folders of pipelines that strangers made: no pickle, no code, nothing outside, no absurd size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_pipelines import sd3

from tts_verifier.errors import CheckpointError
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.generators.diffusers.loading import BUNDLED_PIPELINE
from tts_verifier.loading.pipeline_folder import check_pipeline_folder

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3")
    sd3(folder / "tokens").save_pretrained(folder / "saved")
    return folder / "saved"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(folder: Path, match: str) -> None:
    """Both the check and the generator refuse the folder."""
    for load in (check_pipeline_folder, DiffusersGenerator):
        with pytest.raises(CheckpointError, match=match):
            load(folder)


def test_folders_that_diffusers_wrote_are_accepted(original: Path) -> None:
    check_pipeline_folder(original)
    check_pipeline_folder(BUNDLED_PIPELINE)
    assert DiffusersGenerator(str(original), device="cpu").device == "cpu"


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".pkl", ".pth"])
def test_pickles_in_place_of_safetensors_are_refused(folder: Path, part: str, suffix: str) -> None:
    weights = next((folder / part).glob("*.safetensors"))
    weights.rename(weights.with_suffix(suffix))
    refused(folder, rf"Only safetensors are read, since a pickle can run code; .*{part} has .*"
                    rf"\{suffix}\. Convert it to safetensors first")  # fmt: skip


def test_a_pickle_beside_safetensors_is_not_read(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"not even a pickle")
    DiffusersGenerator(folder, device="cpu")


@pytest.mark.parametrize("name", ["../copy/vae/" + WEIGHTS, "/x.safetensors", "..\\x.safetensors"])
def test_an_index_that_names_a_file_outside_is_refused(folder: Path, name: str) -> None:
    part = folder / "transformer"
    (part / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {"a": name}}
    (part / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    refused(folder, "must lie in its folder")


def test_a_link_out_of_the_folder_is_refused(folder: Path, original: Path) -> None:
    weights = folder / "transformer" / WEIGHTS
    weights.unlink()
    weights.symlink_to(original / "transformer" / WEIGHTS)
    refused(folder, "is a link to")
    shutil.rmtree(folder / "transformer")
    (folder / "transformer").symlink_to(original / "transformer")
    refused(folder, "is a link to")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"vae": ["evil", "Model"]}, "must take vae from diffusers or transformers, got 'evil'"),
        ({"vae": ["os.path", "join"]}, "got 'os.path'. Code that comes with a checkpoint is not"),
        ({"vae": ["diffusers"]}, "a library and a class"),
        ({"vae": [1, 2]}, "a library and a class"),
        ({"../vae": ["diffusers", "AutoencoderKL"]}, "must name a component, got '../vae'"),
        ({"_class_name": ["my_pipeline", "Mine"]}, "whose code comes with it is not run"),
        ({"_class_name": None}, "must name a pipeline of diffusers"),
        ({"_class_name": "NoSuchPipeline"}, "No pipeline could be loaded from"),
        ({"vae": ["diffusers", "NoSuchModel"]}, "No pipeline could be loaded from"),
    ],
)
def test_classes_of_nobody_are_refused(folder: Path, values: dict, match: str) -> None:
    (folder / "vae" / "evil.py").write_text("raise SystemExit('ran')")
    change(folder / "model_index.json", **values)
    with pytest.raises(CheckpointError, match=match):
        DiffusersGenerator(folder)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        *(("transformer", "num_layers", v) for v in (10**7, 10**12, -1, 1.5, "1", True)),
        *(("transformer", "num_attention_heads", v) for v in (10**12, 10**400, -2, "x", [10**12])),
        *(("transformer", "attention_head_dim", v) for v in (10**9, False, -8)),
        ("transformer", "pos_embed_max_size", 30_000),
        ("transformer", "sample_size", 10**6),
        *(("vae", "block_out_channels", v) for v in ([10**12, 8], [8, -8], [8, "8"], [8, True])),
        ("vae", "layers_per_block", 10**7),
        ("vae", "scaling_factor", float("nan")),
        ("vae", "scaling_factor", float("inf")),
        *(("text_encoder", "num_hidden_layers", v) for v in (10**7, -1, "2")),
        *(("text_encoder", "hidden_size", v) for v in (10**12, True, "16", -16, 16.0)),
        ("text_encoder", "max_position_embeddings", 10**12),
        ("text_encoder", "vocab_size", 10**9),
    ],
)
def test_a_size_that_is_none_or_that_the_weights_do_not_hold_is_refused_by_name(
    folder: Path, part: str, field: str, value: Any
) -> None:
    config = folder / part / "config.json"
    if value == 10**400:
        config.write_text(
            config.read_text().replace(f'"{field}": 2', f'"{field}": {"1" + "0" * 400}')
        )
    else:
        change(config, **{field: value})
    with pytest.raises(CheckpointError, match=rf"{part}.config\.json: {field}") as caught:
        check_pipeline_folder(folder)
    assert len(str(caught.value)) < 600


def test_sizes_in_nested_tables_are_checked_too(folder: Path) -> None:
    change(folder / "text_encoder" / "config.json", text_config={"deep": {"num_layers": 10**7}})
    refused(folder, r"config\.json: text_config\.deep\.num_layers 10000000 must fit the weights")


def test_a_schedule_of_a_million_million_steps_is_refused(folder: Path) -> None:
    change(folder / "scheduler" / "scheduler_config.json", num_train_timesteps=10**12)
    refused(folder, r"scheduler_config\.json: num_train_timesteps must be a number of at most")


@pytest.mark.parametrize("name", ["model_index.json", "vae/config.json", "tokenizer/vocab.json"])
def test_deep_json_is_refused_before_diffusers_reads_it(folder: Path, name: str) -> None:
    candidates = (folder / name, *(folder / name).parent.glob("*.json"))
    path = next(p for p in candidates if p.exists())
    path.write_text('{"a": ' + "[" * 100_000)
    refused(folder, "nested at most 64 deep")


def test_damaged_weights_and_odd_tokenizers_are_errors_of_the_checkpoint(folder: Path) -> None:
    for name in ("tokenizer", "tokenizer_2"):
        for path in (folder / name).glob("*.json"):
            path.write_text('{"model": {"type": "BPE", "vocab": 5}, "added_tokens": {}}')
    with pytest.raises(CheckpointError, match="No pipeline could be loaded from"):
        DiffusersGenerator(folder)
    (folder / "vae" / WEIGHTS).write_bytes(b"\xff" * 100)
    refused(folder, "must be a safetensors file")


def test_a_folder_without_an_index_and_a_name_that_is_nothing_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, r"A pipeline needs a model_index\.json")
    for name in (tmp_path / "no", str(tmp_path / "no"), "../no", "a b", "~/no/such/folder"):
        with pytest.raises(CheckpointError, match=r"could be loaded from .*: it is no folder"):
            DiffusersGenerator(name)


def test_a_tilde_is_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    generator = DiffusersGenerator("~/copy", device="cpu")
    assert generator.settings["model"] == "~/copy"
