"""The bundled verifier's tokenizer: frequent phrases are single tokens, anything else is bytes.

It is a byte-level BPE without merges. Each instruction text and each fixed part of a reply is one
token, so that conversations are short and a small model spends its compute on what varies. Words of
the shapes world and coordinates (0 to 512 in steps of 8) are single tokens too. Each decimal of a
score is a token of its own, because the verifier takes an expectation over the digits. Phrases are
ordinary vocabulary: any text may contain them. Only the nine control tokens, named as in Qwen2.5-VL
and ImageDoctor, are special."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from tts_verifier.shapes.grammar import LONG_RELATIONS, PLURAL, PREFIXES
from tts_verifier.shapes.vocabulary import COLOURS, COUNTS, RELATIONS, SHAPES
from tts_verifier.training.miniature.verifier.target_replies import (
    COORDINATE_STEP,
    FRAME,
    PHRASES,
)
from tts_verifier.verifiers.imagedoctor.text.instruction import (
    ANSWER_ONLY,
    PREFILLED,
    REASONING,
    SYSTEM,
)

SPECIAL_TOKENS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|misalignment|>",
    "<|artifact|>",
)
COORDINATES: Final = tuple(str(v) for v in range(0, FRAME + 1, COORDINATE_STEP))
_INSTRUCTIONS: Final = tuple(t.partition("{caption}")[0] for t in (REASONING, ANSWER_ONLY))
# The fixed parts of a conversation.
_TEMPLATE_PARTS: Final = (
    f"system\n{SYSTEM}",
    "user\n",
    "assistant\n",
    f"assistant\n{PREFILLED}",
    *_INSTRUCTIONS,
)
_SCORE_PATTERNS: Final = (r"[01]\.(?=[0-9])", r"(?<=[01]\.)[0-9]", r"(?<=[01]\.[0-9])[0-9]")
_WORD_PATTERNS: Final = (r"[ ,]?[0-9]+", r" ?[A-Za-z]+")


def build_tokenizer_json() -> str:
    """Returns the content of tokenizer.json; the same on every call."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    phrases = sorted({*_TEMPLATE_PARTS, *PHRASES}, key=lambda p: (-len(p), p))
    # Earlier alternatives win: long phrases before their parts, scores before plain numbers.
    pattern = "|".join([*map(re.escape, phrases), *_SCORE_PATTERNS, *_WORD_PATTERNS])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    encoded = [_byte_letters(token) for token in (*phrases, *single_tokens())]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*letters, *encoded]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL_TOKENS])
    return str(tokenizer.to_str(pretty=False))


def single_tokens() -> list[str]:
    """Lists the tokens that are not phrases: words, numbers, the start of a decimal."""
    grammar = (*COLOURS, *SHAPES, *COUNTS, *RELATIONS, *LONG_RELATIONS.values(), *PREFIXES)
    words = sorted({w for text in (*grammar, "a an and", *PLURAL.values()) for w in text.split()})
    tokens = [f"{start}{word}" for word in words for start in ("", " ")]
    tokens += [f"{start}{n}" for n in COORDINATES for start in ("", " ", ",")]
    # Counts and the sums of the checks, most of which are no coordinates.
    tokens += [f" {n}" for n in range(20)]
    return list(dict.fromkeys([*tokens, "0.", "1."]))


def special_token_ids(tokenizer_json: str) -> dict[str, int]:
    """Returns special token -> id, from the content of a tokenizer.json."""
    added = json.loads(tokenizer_json)["added_tokens"]
    return {token["content"]: int(token["id"]) for token in added}


def save_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(build_tokenizer_json(), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": [t for t in SPECIAL_TOKENS if t != "<|endoftext|>"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _byte_letters(token: str) -> str:
    """Spells a token in the letters that byte-level BPE has for its UTF-8 bytes."""
    from tokenizers import pre_tokenizers

    coder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(piece for piece, _ in coder.pre_tokenize_str(token))
