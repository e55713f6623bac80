from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tts_verifier.training.miniature.verifier import tokenizer
from tts_verifier.training.miniature.verifier.config import VERIFIER_PRESETS
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer

BUILT = tokenizer.build_tokenizer_json()
IDS = tokenizer.special_token_ids(BUILT)
FULL = Tokenizer.from_str(BUILT)
CONFIG = ImageDoctorConfig.from_dict(
    VERIFIER_PRESETS["cpu"].sizes.config_json(IDS, FULL.get_vocab_size())
)
WORDS = PromptTokenizer(BUILT, CONFIG)


def tokens(text: str) -> list[str]:
    return [FULL.decode([i], skip_special_tokens=False) for i in FULL.encode(text).ids]


@given(st.text(max_size=80))
def test_any_text_comes_back_byte_for_byte(text: str) -> None:
    assert FULL.decode(WORDS.encode(text), skip_special_tokens=False) == text


@given(st.sampled_from(tokenizer.SPECIAL_TOKENS), st.text(max_size=5))
def test_a_special_token_typed_by_somebody_is_ordinary_text(name: str, around: str) -> None:
    assert not set(IDS.values()) & set(WORDS.encode(around + name + around))


@pytest.mark.parametrize("reasoning", [True, False])
def test_a_whole_conversation_is_a_few_tokens_besides_image_and_caption(reasoning: bool) -> None:
    ids = WORDS.encode_conversation(
        "a red circle to the left of a square", image_tokens=16, reasoning=reasoning
    )
    assert len(ids) == 16 + 22
    assert ids.count(CONFIG.image_token_id) == 16


def test_the_decimals_of_a_score_are_one_token_a_digit() -> None:
    assert tokens("Semantic Alignment score: 0.62;")[1:4] == ["0.", "6", "2"]
    assert tokens("1.00") == ["1.", "0", "0"]


@given(st.integers(0, 64).map(lambda n: str(8 * n)))
def test_a_coordinate_is_one_token_alone_in_a_list_and_in_a_box(number: str) -> None:
    assert [len(tokens(start + number)) for start in ("", " ", ",")] == [1, 1, 1]


def test_the_vocabulary_is_small_and_the_same_every_time(tmp_path: Path) -> None:
    assert FULL.get_vocab_size() <= 1024
    assert tokenizer.build_tokenizer_json() == BUILT
    tokenizer.save_tokenizer(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text(encoding="utf-8") == BUILT
    stated = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert stated["eos_token"] == "<|im_end|>"
