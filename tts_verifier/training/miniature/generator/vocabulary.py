"""The generator's tokenizer: CLIP's kind, with every word of the world as one token.

Any other text falls back to pieces of words, and finally to bytes.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

from tts_verifier.shapes.captions import all_specs
from tts_verifier.shapes.grammar import phrase, variants

PROMPT_TOKENS: Final = 24
"""Tokens of a prompt, start and end included; longer prompts are cut, as CLIP cuts at 77."""
START_TOKEN: Final = "<|startoftext|>"
END_TOKEN: Final = "<|endoftext|>"


@cache
def caption_words() -> tuple[str, ...]:
    """Lists every word that a caption can contain, in alphabetical order."""
    texts = {phrase(spec, v) for spec in all_specs() for v in range(variants(spec))}
    return tuple(sorted({word for text in texts for word in text.split()}))


def build_clip_tokenizer(folder: Path) -> Any:
    """Builds a `CLIPTokenizer` by learning merges until every word is one token.

    Args:
        folder: receives `vocab.json` and `merges.txt`.

    Equally frequent merges are learned in an arbitrary order, so token ids differ between
    calls. A trained generator keeps the files of its own tokenizer.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, min_frequency=1, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(caption_words(), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # CLIP's order: control tokens, bytes, bytes that end a word, then one token for each merge.
    tokens = [
        START_TOKEN,
        END_TOKEN,
        *letters,
        *(c + "</w>" for c in letters),
        *(a + b for a, b in merges),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    # Two merges may give one token, which has one id.
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=PROMPT_TOKENS)
