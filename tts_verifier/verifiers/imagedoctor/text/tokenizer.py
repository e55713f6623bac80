"""The checkpoint's tokenizer: a prompt becomes the token ids of a whole conversation.

A prompt is text and never control. Everything between two control tokens is encoded as one
string by a tokenizer that knows no special tokens, so an `<|im_end|>` that a user types
becomes seven letters and some punctuation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tts_verifier.errors import CheckpointError
from tts_verifier.loading.files import read_text
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.text.instruction import (
    PREFILLED,
    SYSTEM,
    constant_start,
    user_text,
)


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """Ids of the tokens that structure a conversation."""

    im_start: int
    """Opens a message; the name of its role follows."""
    im_end: int
    """Closes a message."""
    vision_start: int
    """Stands before the tokens of an image."""
    vision_end: int
    """Stands after the tokens of an image."""
    image: int
    """Holds the place of one merged visual token."""


class PromptTokenizer:
    """Encodes conversations and decodes replies for one checkpoint.

    It may be shared between threads: nothing changes after construction.

    Args:
        tokenizer: the content of the checkpoint's tokenizer.json.
        config: the checkpoint's config, which states the ids of the special tokens.

    Raises:
        CheckpointError: config and tokenizer disagree, or a control token is missing.
    """

    def __init__(self, tokenizer: str, config: ImageDoctorConfig) -> None:
        parsed: dict[str, Any] = json.loads(tokenizer)
        self._full = Tokenizer.from_str(tokenizer)
        self._plain = Tokenizer.from_str(json.dumps(_without_special_tokens(parsed)))
        # tokenizer.json may ask for truncation or padding, and would damage the conversation.
        self._plain.no_truncation()
        self._plain.no_padding()
        self.control = _control_tokens(self._full, parsed, config)
        self._pieces: dict[int, str] = {}
        largest, size = max(self._full.get_vocab().values()), int(config.text["vocab_size"])
        if largest >= size:
            raise CheckpointError(
                f"tokenizer.json must have ids below config.json's vocab_size {size}, it has the "
                f"id {largest}. Take both from the same checkpoint."
            )
        control, newline = self.control, self.encode("\n")
        self._head = [control.im_start, *self.encode(f"system\n{SYSTEM}"), control.im_end, *newline]
        self._head += [control.im_start, *self.encode("user\n"), control.vision_start]
        self._starts: dict[bool, tuple[int, list[int]]] = {}
        self._tails: dict[bool, list[int]] = {}
        for reasoning in (False, True):
            reply_start = "assistant\n" + ("" if reasoning else PREFILLED)
            tail = [control.im_end, *newline, control.im_start, *self.encode(reply_start)]
            self._tails[reasoning] = tail
            self._starts[reasoning] = self._encode_start(reasoning)

    @classmethod
    def from_folder(cls, folder: Path, config: ImageDoctorConfig) -> PromptTokenizer:
        """Reads the tokenizer.json of a checkpoint folder.

        Raises:
            CheckpointError: the file is missing, damaged, or disagrees with the config.
        """
        path = folder / "tokenizer.json"
        try:
            return cls(read_text(folder, path.name), config)
        except FileNotFoundError:
            raise CheckpointError(
                f"{folder} has no tokenizer.json. Save the checkpoint's tokenizer there, with "
                "save_pretrained of transformers' fast tokenizer."
            ) from None
        except CheckpointError:
            raise
        except BaseException as error:
            # tokenizers raises bare Exception; where it panics, what it raises is not even that.
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                fault = str(error)[:200] or type(error).__name__
                raise CheckpointError(f"{path} must be a fast tokenizer's file: {fault}.") from None
            raise

    def encode(self, text: str) -> list[int]:
        """Encodes text; the name of a special token in it is ordinary text."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int], *, special_tokens: bool = False) -> str:
        """Decodes token ids.

        Args:
            ids: a reply, or any other tokens.
            special_tokens: True writes special tokens by name. False leaves them out, as the
                official script does.
        """
        return str(self._full.decode(ids, skip_special_tokens=not special_tokens))

    def pieces(self, ids: list[int]) -> list[str]:
        """Decodes each token id alone, without special tokens."""
        # A reply uses few different tokens, and decoding one costs as much as a whole reply.
        for i in set(ids) - self._pieces.keys():
            self._pieces[i] = self.decode([i])
        return [self._pieces[i] for i in ids]

    def encode_conversation(self, prompt: str, *, image_tokens: int, reasoning: bool) -> list[int]:
        """Encodes a conversation up to the place where the model's reply begins.

        Args:
            prompt: the text that the image was generated for; any text will do.
            image_tokens: number of merged visual tokens of the image.
            reasoning: True asks for reasons and an answer. False asks for the answer alone,
                and the conversation ends with the official start of the reply.
        """
        length, start = self._starts[reasoning]
        rest = self.encode(user_text(prompt, reasoning=reasoning)[length:])
        image = [*[self.control.image] * image_tokens, self.control.vision_end]
        return [*self._head, *image, *start, *rest, *self._tails[reasoning]]

    def _encode_start(self, reasoning: bool) -> tuple[int, list[int]]:
        """Encodes the part of a user's message that is the same for every prompt.

        Returns:
            Its characters and its ids. Nothing is kept if the rest, encoded alone, might give other
            ids, as where no piece of the pre-tokenizer ends there: no token spans two pieces.
        """
        start, whole = constant_start(reasoning=reasoning), user_text("a dog", reasoning=reasoning)
        ids, splitter = self.encode(start), self._plain.pre_tokenizer
        pieces = splitter.pre_tokenize_str(whole) if splitter else []
        alone = [*ids, *self.encode(whole[len(start) :])]
        if alone == self.encode(whole) and any(end == len(start) for _, (_, end) in pieces):
            return len(start), ids
        return 0, []


def _without_special_tokens(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of a tokenizer that makes no special token from any text."""
    model = dict(parsed["model"])
    # With `ignore_merges` a whole word that is in the vocabulary becomes one token without
    # any merge, so the names of special tokens have to leave the vocabulary as well.
    if model.get("ignore_merges"):
        special = {token["content"] for token in parsed["added_tokens"]}
        model["vocab"] = {t: i for t, i in model["vocab"].items() if t not in special}
    return {**parsed, "added_tokens": [], "post_processor": None, "model": model}


def _control_tokens(
    full: Tokenizer, parsed: Mapping[str, Any], config: ImageDoctorConfig
) -> ControlTokens:
    """Checks the config's special tokens against the tokenizer's, and collects their ids."""
    added = {token["content"]: int(token["id"]) for token in parsed["added_tokens"]}
    stated = {
        "<|image_pad|>": ("image_token_id", config.image_token_id),
        "<|vision_start|>": ("vision_start_token_id", config.vision_start_token_id),
        "<|vision_end|>": ("vision_end_token_id", config.vision_end_token_id),
        "<|misalignment|>": ("misalignment_token_id", config.misalignment_token_id),
        "<|artifact|>": ("artifact_token_id", config.artifact_token_id),
    }
    for content, (key, value) in stated.items():
        if added.get(content, value) != value:
            raise CheckpointError(
                f"config.json and tokenizer.json must agree: {key} is {value}, but {content} has "
                f"id {added[content]}. Take both from the same checkpoint."
            )
        # A checkpoint may name its special token otherwise, but its id must be special.
        name = full.id_to_token(value)
        if name is not None and name not in added:
            raise CheckpointError(
                f"{key} {value} must be a special token, but tokenizer.json has the ordinary "
                f"token {name!r} there. Take both from the same checkpoint."
            )
    if absent := [name for name in ("<|im_start|>", "<|im_end|>") if name not in added]:
        raise CheckpointError(f"tokenizer.json has no special token {' and '.join(absent)}.")
    return ControlTokens(
        im_start=added["<|im_start|>"],
        im_end=added["<|im_end|>"],
        vision_start=config.vision_start_token_id,
        vision_end=config.vision_end_token_id,
        image=config.image_token_id,
    )
