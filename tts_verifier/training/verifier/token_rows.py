"""Conversations as tokens, with the tokens that are learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tts_verifier.errors import InputError
from tts_verifier.training.verifier.sft_loss import IGNORED
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer

HEATMAP_TOKENS: Final[Mapping[str, str]] = {
    "misalignment_token_id": "<|misalignment|>",
    "artifact_token_id": "<|artifact|>",
}
"""Key of the config -> token, in the order of their ids."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A conversation as tokens."""

    ids: list[int]
    """Token ids."""
    labels: list[int]
    """The same ids where a token is learned, `IGNORED` elsewhere."""


def conversation_row(
    tokenizer: PromptTokenizer,
    config: ImageDoctorConfig,
    prompt: str,
    reply: Iterable[tuple[str, bool]],
    *,
    image_tokens: int,
    reasoning: bool,
) -> TokenRow:
    """Writes a whole conversation, up to the token that ends the reply.

    Args:
        tokenizer: of the checkpoint that is trained.
        config: of the same checkpoint.
        prompt: what the picture was generated for.
        reply: its parts, each with whether it is learned.
        image_tokens: number of merged visual tokens of the picture.
        reasoning: whether the reply has reasons, or only the answer after the prefilled start.
    """
    ids = tokenizer.encode_conversation(prompt, image_tokens=image_tokens, reasoning=reasoning)
    labels = [IGNORED] * len(ids)
    for text, learned in reply:
        tokens = encode_reply(text, tokenizer, config)
        ids += tokens
        labels += tokens if learned else [IGNORED] * len(tokens)
    end = tokenizer.control.im_end
    return TokenRow([*ids, end], [*labels, end])


def encode_reply(text: str, tokenizer: PromptTokenizer, config: ImageDoctorConfig) -> list[int]:
    """Encodes a part of a reply, in which the two heatmap tokens are special."""
    for key, token in HEATMAP_TOKENS.items():
        before, separator, after = text.partition(token)
        if separator:
            return [
                *encode_reply(before, tokenizer, config),
                getattr(config, key),
                *encode_reply(after, tokenizer, config),
            ]
    return tokenizer.encode(text) if text else []


def check_heatmap_tokens(tokenizer: PromptTokenizer, config: ImageDoctorConfig, name: str) -> None:
    """Checks that the tokenizer has both heatmap tokens, without which no reply could be read.

    Raises:
        InputError: one of them is missing.
    """
    ids = {key: getattr(config, key) for key in HEATMAP_TOKENS}
    absent = [
        f"{key} {i}" for key, i in ids.items() if not tokenizer.decode([i], special_tokens=True)
    ]
    if absent:
        raise InputError(
            f"{name}: the tokenizer must have both heatmap tokens, and has none for "
            f"{' and '.join(absent)}. Make an ImageDoctor of a stock Qwen2.5-VL first: "
            "tts-train init-from-qwen.",
            argument="init",
        )
