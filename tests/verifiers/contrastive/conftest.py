from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_contrastive
import torch

from tts_verifier.verifiers.contrastive.open_clip import transformers_names

GOLDEN = Path(__file__).parent / "golden" / "golden.npz"


class Golden:
    """The official code's numbers, and checkpoints of the weights that they were made with."""

    def __init__(self) -> None:
        self.numbers = np.load(GOLDEN)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.numbers[name]

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The weights of a model under their official names."""
        shapes = json.loads(str(self.numbers[f"{name}_shapes"]))
        return {n: torch.as_tensor(v) for n, v in tiny_contrastive.weights(shapes).items()}


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()


@pytest.fixture
def clip_folder(golden: Golden, tmp_path: Path) -> Path:
    return tiny_contrastive.write_clip(tmp_path / "clip", golden.tensors("clip"))


@pytest.fixture
def hpsv2_files(golden: Golden, tmp_path: Path) -> tuple[Path, Path]:
    """The official pickle, and the folder of the CLIP that it was trained from."""
    model, base = tmp_path / "HPS_v2.1_compressed.pt", tmp_path / "base"
    torch.save({"epoch": 1, "state_dict": golden.tensors("hpsv2")}, model)
    tiny_contrastive.write_clip_processor(base)
    config = tiny_contrastive.clip_config(hidden_act="gelu")
    (base / "config.json").write_text(json.dumps(config))
    return model, base


@pytest.fixture
def aesthetic_files(golden: Golden, tmp_path: Path) -> tuple[Path, Path]:
    """The folder of a CLIP of OpenAI's architecture, and the official file of the head."""
    tensors = transformers_names(golden.tensors("aesthetic"))
    head = tmp_path / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(golden.tensors("aesthetic_head"), head)
    return tiny_contrastive.write_clip(tmp_path / "clip", tensors), head


@pytest.fixture
def imagereward_files(golden: Golden, tmp_path: Path) -> tuple[Path, Path]:
    """The official pickle, and the folder of the tokenizer."""
    model, tokenizer = tmp_path / "ImageReward.pt", tmp_path / "bert"
    torch.save(golden.tensors("imagereward"), model)
    tiny_contrastive.write_bert_tokenizer(tokenizer)
    return model, tokenizer
