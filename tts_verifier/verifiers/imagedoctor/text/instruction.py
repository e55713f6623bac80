"""The words given to the model, and their token ids.

Both instructions are the official ones byte for byte, typing errors included, since the
weights were trained on them: REASONING from inference.py, ANSWER_ONLY from modify/flow_grpo/
flow_grpo/doctor_hp.py, which also cleans the caption and starts the reply itself.

A caption is text, never control: everything between two control tokens is encoded as one
string by a tokenizer that knows no special token, so that a `<|im_end|>` typed by somebody is
seven letters and some punctuation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from tts_verifier.errors import CheckpointError
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig

_OPENING: Final = (
    "Given a caption and an image generated based on this caption, please analyze the provided "
    "image in detail. Evaluate it on various dimensions including Semantic Alignment (How well "
    "the image content corresponds to the caption), Aesthetics (composition, color usage, and "
    "overall artistic quality), Plausibility (realism and attention to detail), and Overall "
    "Impression (General subjective assessment of the image's quality). For each evaluation "
    "dimension, provide a score between 0-1"
)
_CLOSING: Final = (
    'Overall Impression score: ...". No additional text is allowed in the answer section.\n\n '
    "Your actual evaluation should be based on the quality of the provided image.**\n\n"
    "Your task is provided as follows:\nText Caption: [{caption}]"
)
REASONING: Final = (
    _OPENING
    + " and provide a concise rationale for the score. Use a chain-of-thought process to detail "
    "your reasoning steps, and enclose all potential important areas and detailed reasoning "
    "within <think> and </think> tags. The important areas are represented in following format: "
    "\\” I need to focus on the bounding box area. Proposed regions (xyxy): ..., which is an "
    "enumerated list in the exact format:1.[x1,y1,x2,y2];\n2.[x1,y1,x2,y2];\n3.[x1,y1,x2,y2]… "
    "Here, x1,y1 is the top-left corner, and x2,y2 is the bottom-right corner. Then, within the "
    "<answer> and </answer> tags, summarize your assessment in the following format: "
    '"Semantic Alignment score: ... \nMisalignment Locations: ...\nAesthetic score: ...\n'
    "Plausibility score: ... nArtifact Locations: ...\n" + _CLOSING
)
ANSWER_ONLY: Final = (
    _OPENING
    + ". Within the <answer> and </answer> tags, summarize your assessment in the following "
    'format: "Semantic Alignment score: ...\nMisalignment Locations: ...\nAesthetic score: ...\n'
    "Plausibility score: ...\nArtifact Locations: ...\n" + _CLOSING
)
PREFILLED: Final = "<think>\n...</think>\n<answer>"
"""How the reply starts in answer-only mode; the model continues it."""

SYSTEM: Final = "You are a helpful assistant."
"""The system turn of Qwen2.5-VL's default chat template."""

_FINAL_PUNCTUATION: Final = ".,!?:;…、，。！？；："


def clean_caption(caption: str) -> str:
    """Strips blanks and final punctuation, as the official scorer does."""
    end = len(caption)
    while end and (caption[end - 1].isspace() or caption[end - 1] in _FINAL_PUNCTUATION):
        end -= 1
    return caption[:end].lstrip()


def user_text(caption: str, *, reasoning: bool) -> str:
    """Returns the whole text of the user's turn, after the image."""
    if reasoning:
        return REASONING.replace("{caption}", caption)
    return ANSWER_ONLY.replace("{caption}", clean_caption(caption))


@dataclass(frozen=True, slots=True)
class Control:
    """Ids of the tokens that structure a conversation."""

    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    image: int


class Words:
    """Text to ids and back, for one checkpoint.

    Args:
        tokenizer: the content of its tokenizer.json.
        config: whose ids must be those of the tokenizer.

    Raises:
        CheckpointError: they disagree, or a control token is missing.
    """

    def __init__(self, tokenizer: str, config: ImageDoctorConfig) -> None:
        parsed: dict[str, Any] = json.loads(tokenizer)
        self._full = Tokenizer.from_str(tokenizer)
        self._plain = Tokenizer.from_str(json.dumps(_without_added(parsed)))
        self._full.no_truncation()
        self._plain.no_truncation()
        self._plain.no_padding()
        self.control = _control(self._full, parsed, config)

    @classmethod
    def from_folder(cls, folder: Path, config: ImageDoctorConfig) -> Words:
        """Reads tokenizer.json of a folder.

        Raises:
            CheckpointError: it is missing, damaged, or disagrees with the config.
        """
        path = folder / "tokenizer.json"
        if not path.exists():
            raise CheckpointError(
                f"{folder} has no tokenizer.json. Save the checkpoint's tokenizer there, with "
                "save_pretrained of transformers' fast tokenizer."
            )
        try:
            return cls(path.read_text(encoding="utf-8"), config)
        except CheckpointError:
            raise
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path} must be a fast tokenizer's file: {error}.") from None

    def encode(self, text: str) -> list[int]:
        """Encodes text in which nothing is a special token."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """Decodes a reply; special tokens are left out, as the official script does."""
        return str(self._full.decode(ids, skip_special_tokens=True))

    def prompt(self, caption: str, *, cells: int, reasoning: bool) -> list[int]:
        """Returns the ids of one conversation up to where the reply goes on.

        Args:
            caption: any text.
            cells: merged visual tokens of the image.
            reasoning: ask for the reasons; else answer-only, with the reply's start.
        """
        c = self.control
        ids = [c.im_start, *self.encode(f"system\n{SYSTEM}"), c.im_end, *self.encode("\n")]
        ids += [c.im_start, *self.encode("user\n"), c.vision_start, *[c.image] * cells]
        ids += [c.vision_end, *self.encode(user_text(caption, reasoning=reasoning)), c.im_end]
        reply = "assistant\n" + ("" if reasoning else PREFILLED)
        return [*ids, *self.encode("\n"), c.im_start, *self.encode(reply)]


def _without_added(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tokenizer's content in which no text makes a special token.

    Where whole words may be tokens without merges, the special ones leave the vocabulary.
    """
    model = dict(parsed["model"])
    if model.get("ignore_merges"):
        special = {token["content"] for token in parsed["added_tokens"]}
        model["vocab"] = {t: i for t, i in model["vocab"].items() if t not in special}
    return {**parsed, "added_tokens": [], "post_processor": None, "model": model}


def _control(full: Tokenizer, parsed: Mapping[str, Any], config: ImageDoctorConfig) -> Control:
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
        name = full.id_to_token(value)
        if name is not None and name not in added:
            raise CheckpointError(
                f"{key} {value} must be a special token, but tokenizer.json has the ordinary "
                f"token {name!r} there. Take both from the same checkpoint."
            )
    if absent := [name for name in ("<|im_start|>", "<|im_end|>") if name not in added]:
        raise CheckpointError(f"tokenizer.json has no special token {' and '.join(absent)}.")
    return Control(
        im_start=added["<|im_start|>"],
        im_end=added["<|im_end|>"],
        vision_start=config.vision_start_token_id,
        vision_end=config.vision_end_token_id,
        image=config.image_token_id,
    )
