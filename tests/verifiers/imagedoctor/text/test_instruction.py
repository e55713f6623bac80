from __future__ import annotations

import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from tts_verifier.verifiers.imagedoctor.text.instruction import (
    ANSWER_ONLY,
    REASONING,
    clean_prompt,
    user_text,
)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_both_instructions_are_the_official_ones_byte_for_byte() -> None:
    assert sha(REASONING) == "6cf553674d7a289cdedc8b47afa8bce5a53aec0fc9d820cdd56f4674fade8c62"
    assert sha(ANSWER_ONLY) == "caffd89fe9e9ce42e62c1c913b403997fc407f6bedd250f5f122e3724d1a462c"


def test_prompts_are_cleaned_in_the_answer_only_instruction_alone() -> None:
    assert user_text(" a dog!? ", reasoning=True).endswith("[ a dog!? ]")
    assert user_text(" a dog!? ", reasoning=False).endswith("[a dog]")


@given(st.text(alphabet=" .,!?:;…、，。！？；：\n\tab\u3000", max_size=12))
def test_cleaning_equals_the_official_expression(prompt: str) -> None:
    official = re.sub(r"[\s\.\,\!\?\:\;…、，。！？；：]+$", "", prompt.strip())
    assert clean_prompt(prompt) == official
