"""The official instructions to the model, byte for byte.

The weights were trained on these texts, typing errors included. REASONING is from inference.py
of ImageDoctor, ANSWER_ONLY from modify/flow_grpo/flow_grpo/doctor_hp.py. The latter also cleans
the prompt and writes the start of the reply itself.
"""

from __future__ import annotations

from typing import Final

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
# The stray quotation mark, the lone `n` before "Artifact" and the `**` of `_CLOSING` are official.
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
"""The start of the reply that is given to the model in answer-only mode."""

SYSTEM: Final = "You are a helpful assistant."
"""The system message of Qwen2.5-VL's default chat template."""

_FINAL_PUNCTUATION: Final = ".,!?:;…、，。！？；："


def clean_prompt(prompt: str) -> str:
    """Strips surrounding white space and final punctuation, as the official scorer does."""
    end = len(prompt)
    while end and (prompt[end - 1].isspace() or prompt[end - 1] in _FINAL_PUNCTUATION):
        end -= 1
    return prompt[:end].lstrip()


def constant_start(*, reasoning: bool) -> str:
    """Returns the start of every `user_text`, all lines before the one that has the prompt."""
    text = REASONING if reasoning else ANSWER_ONLY
    return text[: text.rindex("\n", 0, text.index("{caption}")) + 1]


def user_text(prompt: str, *, reasoning: bool) -> str:
    """Returns the text of the user's message, which follows the image.

    Args:
        prompt: the text that the image was generated for.
        reasoning: True for the instruction that asks for reasons, False for the one that asks
            for the answer alone.
    """
    if reasoning:
        return REASONING.replace("{caption}", prompt)
    return ANSWER_ONLY.replace("{caption}", clean_prompt(prompt))
