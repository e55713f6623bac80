from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_imagedoctor import example, noise

from tts_verifier.errors import RunWarning
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_model
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer


def test_a_folder_is_scored_with_a_made_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        example(name).main()
        return capsys.readouterr().out

    assert "MB" in run("make_checkpoint", tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for i in range(2):
        noise(40, 30, seed=i).save(tmp_path / "pictures" / f"{i}.png")
    options = ("--verifier", tmp_path / "model", "--overlays", tmp_path / "maps")
    with pytest.warns(RunWarning, match="No image has a usable score"):
        out = run("score_folder", tmp_path / "pictures", "--prompt", "a dog", *options)
    assert out.startswith("1. 0.png  nan  (semantic_alignment nan")
    assert (tmp_path / "maps").is_dir()


def test_a_checkpoint_of_any_size_is_made_from_a_file(tmp_path: Path) -> None:
    size = tmp_path / "size.json"
    size.write_text('{"num_hidden_layers": 3, "torch_dtype": "bfloat16"}')
    example().make(tmp_path / "model", size=str(size))
    assert len(load_model(tmp_path / "model").model.layers) == 3


def test_the_3b_checkpoint_has_the_official_ids_and_sizes() -> None:
    make = example()
    config = ImageDoctorConfig.from_dict(make.config("3b"))
    with torch.device("meta"):
        model = ImageDoctorModel(config)
    assert sum(p.numel() for p in model.parameters()) == 3_754_622_976 + 62_026_188
    tokenizer = PromptTokenizer(make.tokenizer(make.config("3b")), config)
    assert (
        tokenizer.encode_conversation("a dog", image_tokens=324, reasoning=True).count(151655)
        == 324
    )
