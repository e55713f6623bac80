"""A tiny ImageDoctor, a tiny stock Qwen2.5-VL, and a tiny data set, all made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tts_verifier.training.miniature.verifier.tokenizer import SPECIAL_TOKENS
from tts_verifier.training.richhf.miniature import make_miniature_richhf
from tts_verifier.training.verifier.token_rows import HEATMAP_TOKENS
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor

STOCK_TOKENS = [t for t in SPECIAL_TOKENS if t not in HEATMAP_TOKENS.values()]


@pytest.fixture(scope="session")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ratings") / "data"
    make_miniature_richhf(output=str(folder), sizes={"train": 6}, sample_share=0, processes=1)
    return folder


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock Qwen2.5-VL as transformers writes it, whose vocabulary is not padded."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("stock")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={x: i for i, x in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in STOCK_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {}}))
    ids = {t: tokenizer.token_to_id(t) for t in STOCK_TOKENS}
    text = {
        "vocab_size": max(ids.values()) + 1,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default"},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    Processor(input_size=112).save(folder)
    return folder
