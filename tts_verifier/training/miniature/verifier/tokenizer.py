"""The bundled verifier's tokenizer: frequent phrases are single tokens, anything else is bytes.

A byte-level BPE without merges. The instruction texts and the fixed parts of a reply are one
token each, so that a conversation is short and a small model spends its compute on what
varies. Words of the shapes world and coordinates (0 to 512 in steps of 8) are single tokens
too; the decimals of a score are one token a digit, so that an expectation over them can be
taken. Phrases are ordinary vocabulary: any text may contain them. Only the nine control
tokens, named as Qwen2.5-VL and ImageDoctor name them, are special.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from tts_verifier.shapes.grammar import LONG_RELATIONS, PREFIXES
from tts_verifier.shapes.vocabulary import COLOURS, COUNTS, RELATIONS, SHAPES
from tts_verifier.training.miniature.verifier.replies import PHRASES
from tts_verifier.verifiers.imagedoctor.text.instruction import (
    ANSWER_ONLY,
    PREFILLED,
    REASONING,
    SYSTEM,
)

SPECIAL: Final = (
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
STEP: Final = 8
COORDINATES: Final = tuple(str(v) for v in range(0, 513, STEP))
_INSTRUCTIONS: Final = tuple(t.partition("{caption}")[0] for t in (REASONING, ANSWER_ONLY))
_SKELETON: Final = (
    f"system\n{SYSTEM}",
    "user\n",
    "assistant\n",
    f"assistant\n{PREFILLED}",
    *_INSTRUCTIONS,
)
_SCORE: Final = (r"[01]\.(?=[0-9])", r"(?<=[01]\.)[0-9]", r"(?<=[01]\.[0-9])[0-9]")
_WORDS: Final = (r"[ ,]?[0-9]+", r" ?[A-Za-z]+")


def build() -> str:
    """Returns the content of tokenizer.json; the same on every call."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    phrases = sorted({*_SKELETON, *PHRASES}, key=lambda p: (-len(p), p))
    pattern = "|".join([*map(re.escape, phrases), *_SCORE, *_WORDS])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    coded = [_byte_letters(token) for token in (*phrases, *words())]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*letters, *coded]))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    return str(made.to_str(pretty=False))


def words() -> list[str]:
    """Lists the single tokens that are not phrases: words, numbers, the start of a decimal."""
    grammar = (*COLOURS, *SHAPES, *COUNTS, *RELATIONS, *LONG_RELATIONS.values(), *PREFIXES)
    plural = [s + ("es" if s.endswith("s") else "s") for s in SHAPES]
    plain = sorted({w for text in (*grammar, "a an and", *plural) for w in text.split()})
    found = [f"{start}{word}" for word in plain for start in ("", " ")]
    found += [f"{start}{n}" for n in COORDINATES for start in ("", " ", ",")]
    found += [f" {n}" for n in range(20)]
    return list(dict.fromkeys([*found, "0.", "1."]))


def ids_of(tokenizer: str) -> dict[str, int]:
    """Returns the id of every special token of a tokenizer.json."""
    return {token["content"]: int(token["id"]) for token in json.loads(tokenizer)["added_tokens"]}


def save(folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(build(), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": [t for t in SPECIAL if t != "<|endoftext|>"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _byte_letters(token: str) -> str:
    """Writes a token in the letters that byte-level BPE has for its UTF-8 bytes."""
    from tokenizers import pre_tokenizers

    coder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(piece for piece, _ in coder.pre_tokenize_str(token))
