from __future__ import annotations

from pathlib import Path

import torch

from tts_verifier.training.miniature.verifier.checkpoint import weights_mib
from tts_verifier.training.miniature.verifier.config import VERIFIER_PRESETS
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_model
from tts_verifier.verifiers.imagedoctor.checkpoint.save import save_model


def test_a_folder_written_anew_keeps_no_weights_of_before(tiny, tmp_path: Path) -> None:
    save_model(tiny.checkpoint.model, tmp_path, shard_bytes=50_000)
    assert len(list(tmp_path.glob("*.safetensors*"))) > 2
    save_model(tiny.checkpoint.model, tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    load_model(tmp_path)


def test_near_numbers_start_with_near_embeddings(tiny) -> None:
    tokenizer = tiny.checkpoint.tokenizer
    table = tiny.checkpoint.model.model.embed_tokens.weight
    rows = table[[tokenizer.encode(f" {n}")[0] for n in (248, 256, 480)]]
    near, far = torch.cosine_similarity(rows[:1], rows[1:])
    assert near > 0.7
    assert far < 0.5


def test_both_presets_fit_the_repository() -> None:
    for name, limit in (("cpu", 8), ("gpu", 24)):
        sizes = VERIFIER_PRESETS[name].sizes
        assert sizes.input_size % 28 == 0
        assert weights_mib(sizes) < limit
