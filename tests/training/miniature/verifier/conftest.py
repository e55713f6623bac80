"""A tiny verifier of random weights for the tests of its training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_training import VERIFIER_SIZES
from tokenizers import Tokenizer

from tts_verifier.training.miniature.verifier.checkpoint import (
    read_checkpoint,
    write_random_checkpoint,
)
from tts_verifier.training.miniature.verifier.rows import RowWriter
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint


@dataclass(frozen=True)
class TinyVerifier:
    """A checkpoint of random weights, read for training."""

    folder: Path
    checkpoint: Checkpoint
    writer: RowWriter

    def decode(self, ids: torch.Tensor) -> str:
        """Returns the text of token ids, special tokens included."""
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        return tokenizer.decode(ids.tolist(), skip_special_tokens=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyVerifier:
    folder = tmp_path_factory.mktemp("tiny")
    write_random_checkpoint(folder, VERIFIER_SIZES, seed=0)
    checkpoint = read_checkpoint(folder)
    writer = RowWriter(checkpoint.tokenizer, checkpoint.model.config, 2)
    return TinyVerifier(folder, checkpoint, writer)
