"""Where models go, and what of a stranger's folder is never run."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from tiny_judges import save_judge

from tts_verifier.errors import CheckpointError, RunWarning
from tts_verifier.verifiers.vision_language.inference import loading
from tts_verifier.verifiers.vision_language.vqascore import VQAScore


def test_a_model_that_does_not_fit_waits_in_host_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "usual_device", lambda options: torch.device("cuda", 0))
    monkeypatch.setattr(loading, "fits_on_device", lambda nbytes, device: False)
    with pytest.warns(RunWarning, match="do not fit on cuda:0 .* waits in host memory"):
        judge = VQAScore(save_judge(tmp_path), dtype="float32")
    assert (judge.home, str(judge.device)) == ("cuda:0", "cpu")


def test_on_a_gpu_the_usual_dtype_is_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading.usual_dtype({}) == torch.float32
    monkeypatch.setattr(loading, "usual_device", lambda options: torch.device("cuda", 0))
    assert loading.usual_dtype({}) == torch.bfloat16
    assert loading.usual_dtype({"dtype": "float16"}) == torch.float16


def test_bfloat16_gives_nearly_the_same_score(tmp_path: Path) -> None:
    from tiny_imagedoctor import noise

    save_judge(tmp_path, "llava")
    whole, half = (VQAScore(tmp_path, dtype=d) for d in ("float32", "bfloat16"))
    found = [j.verify([noise(60, 60)], ["a cat"])[0].scores["vqascore"] for j in (whole, half)]
    assert found[1] == pytest.approx(found[0], rel=0.2)
    assert half.settings["dtype"] == "bfloat16"


def test_no_code_of_a_folder_runs(tmp_path: Path) -> None:
    folder = save_judge(tmp_path)
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        values = json.loads((folder / name).read_text())
        values["auto_map"] = {
            "AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil",
            "AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoProcessor": "evil.Evil",
            "AutoImageProcessor": "evil.Evil",
        }  # fmt: skip
        (folder / name).write_text(json.dumps(values))
    assert VQAScore(folder).settings["model"] == str(folder)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    folder = save_judge(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(exit))
    with pytest.raises(CheckpointError, match="must hold the safetensors"):
        VQAScore(folder)
