"""HPSv3 and VQAScore equal the official packages on random weights; see golden/make_golden.py."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_judges import save_judge

from tts_verifier.errors import CheckpointError
from tts_verifier.testing import check_verifier
from tts_verifier.verifiers.vision_language.hpsv3 import HPSv3
from tts_verifier.verifiers.vision_language.vqascore import VQAScore

FOLDER = Path(__file__).parent / "golden"
_SPEC = importlib.util.spec_from_file_location("golden_weights", FOLDER / "weights.py")
weights = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(weights)
IMAGES = [weights.picture(*image) for image in weights.IMAGES]
PROMPTS = list(weights.PROMPTS)
EXPECTED = np.load(FOLDER / "golden.npz")


def official(name: str) -> str:
    """The name of a tensor before transformers 4.52, which the released files have."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def sizes_of_the_release(folder: Path) -> None:
    """Lets images keep their size, as the official resizing does."""
    file = folder / "preprocessor_config.json"
    config = json.loads(file.read_text())
    config["size"] = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16384 * 28 * 28}
    file.write_text(json.dumps(config))


def test_vqascore_equals_t2v_metrics(tmp_path: Path) -> None:
    sizes_of_the_release(save_judge(tmp_path))
    judge = VQAScore(tmp_path)
    model = judge.engine.model
    for name, tensor in model.state_dict().items():
        value = weights.value(official(name), tuple(tensor.shape))
        tensor.copy_(torch.from_numpy(value))
    model.generation_config.repetition_penalty = 1.05
    scores = [v.scores["vqascore"] for v in judge.verify(IMAGES, PROMPTS)]
    assert scores == pytest.approx(EXPECTED["vqascore"].tolist(), abs=1e-7, rel=1e-3)


def hpsv3_folder(folder: Path, rename=official) -> Path:
    """A Qwen2-VL with HPSv3's file beside it, whose vocabulary has one token more."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    save_judge(folder, "qwen2_vl")
    (folder / "model.safetensors").unlink()
    config = Qwen2VLConfig.from_pretrained(folder)
    config.text_config.vocab_size += 1
    network = Qwen2VLForConditionalGeneration(config)
    shapes = {official(n): tuple(t.shape) for n, t in network.state_dict().items()}
    width = config.text_config.hidden_size
    shapes |= {"rm_head.0.weight": (1024, width), "rm_head.0.bias": (1024,)}
    shapes |= {"rm_head.3.weight": (16, 1024), "rm_head.3.bias": (16,)}
    shapes |= {"rm_head.5.weight": (2, 16), "rm_head.5.bias": (2,)}
    state = {rename(n): torch.from_numpy(weights.value(n, shape)) for n, shape in shapes.items()}
    save_file(state, folder / "HPSv3.safetensors")
    return folder


def test_hpsv3_equals_the_official_package(tmp_path: Path) -> None:
    judge = HPSv3(hpsv3_folder(tmp_path))
    verdicts = judge.verify(IMAGES, PROMPTS)
    found = [[v.scores["mu"], np.log(v.scores["mu_sigma"])] for v in verdicts]
    assert np.allclose(found, EXPECTED["hpsv3"], atol=1e-4)


def test_hpsv3_says_how_sure_it_is_as_objectives_read_it(tmp_path: Path) -> None:
    judge = HPSv3(hpsv3_folder(tmp_path))
    scores = judge.verify(IMAGES[:1], PROMPTS[:1])[0].scores
    assert judge.objective.sigma(scores) == scores["mu_sigma"] > 0


def test_hpsv3_reads_the_names_of_newer_transformers(tmp_path: Path) -> None:
    def newer(name: str) -> str:
        name = name.replace("visual.", "model.visual.", 1)
        return name.replace("model.layers", "model.language_model.layers")

    judge = HPSv3(hpsv3_folder(tmp_path / "newer", newer))
    verdict = judge.verify(IMAGES[:1], ["<|Reward|>: a token's name"])[0]
    assert verdict.scores["mu"] != 0


@pytest.mark.slow
def test_hpsv3_conforms(tmp_path: Path) -> None:
    check_verifier(HPSv3(hpsv3_folder(tmp_path), batch_size=2), IMAGES[:2], PROMPTS[:2])


def test_hpsv3_takes_its_base_from_elsewhere(tmp_path: Path) -> None:
    base = hpsv3_folder(tmp_path / "base")
    (tmp_path / "alone").mkdir()
    (base / "HPSv3.safetensors").rename(tmp_path / "alone" / "HPSv3.safetensors")
    judge = HPSv3(tmp_path / "alone", base=base)
    assert judge.verify(IMAGES[:1], PROMPTS[:1])[0].scores["mu_sigma"] > 0
    assert judge.settings["base"] == str(base)
    with pytest.raises(CheckpointError, match=r"must hold a \.safetensors file of HPSv3"):
        HPSv3(base)
    qwen25 = save_judge(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"needs a Qwen2-VL as base.*is a qwen2_5_vl"):
        HPSv3(tmp_path / "alone", base=qwen25)


def test_hpsv3_refuses_weights_that_do_not_fit(tmp_path: Path) -> None:
    folder = hpsv3_folder(tmp_path, lambda name: name.replace("rm_head.5", "rm_head.6"))
    with pytest.raises(CheckpointError, match=r"2 are missing .* another shape: rm_head\.5"):
        HPSv3(folder)
    save_judge(tmp_path / "short", "qwen2_vl")
    with pytest.raises(CheckpointError, match=r"must know the token <.Reward.>, which has id 269"):
        HPSv3(tmp_path / "short")


def test_a_preference_that_is_not_finite_is_nan_with_its_reason(tmp_path: Path) -> None:
    judge = HPSv3(hpsv3_folder(tmp_path))
    judge.engine.model.rm_head[5].bias.data[1] = 1000
    verdict = judge.verify(IMAGES[:1], PROMPTS[:1])[0]
    assert str(verdict.scores) == "{'mu': nan, 'mu_sigma': nan}"
    assert "which are no preference" in verdict.error
