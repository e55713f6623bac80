"""Makes a verdict of a reply's tokens and its heatmaps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tts_verifier.errors import RunWarning
from tts_verifier.types import Cost, Detail, Heatmap, Heatmaps, Verdict
from tts_verifier.verifiers.imagedoctor.image.letterbox import FrameMapping
from tts_verifier.verifiers.imagedoctor.requests import GeneratedReply
from tts_verifier.verifiers.imagedoctor.text.answer_template import AnswerTemplate
from tts_verifier.verifiers.imagedoctor.text.expected_scores import expected_scores
from tts_verifier.verifiers.imagedoctor.text.reply import parse_reply
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer


class ReplyTokens(NamedTuple):
    """What a verdict needs of a reply: no tensors, so the engine's buffers can be freed."""

    ids: list[int]
    """All tokens of the reply, without the end token."""
    probs: NDArray[np.float32]
    """(tokens, W), see `GeneratedReply.probs`; zeros at a template's fixed ends."""
    ended: bool
    """False if `max_new_tokens` cut the reply off."""

    @classmethod
    def of(cls, reply: GeneratedReply, template: AnswerTemplate) -> ReplyTokens:
        """Adds the template's fixed tokens at both ends; no probabilities belong to them."""
        if not template.forced_steps:
            return cls(reply.ids, reply.probs, reply.ended)
        padding = ((len(template.before), len(template.after)), (0, 0))
        ids = [*template.before, *reply.ids, *template.after]
        return cls(ids, np.pad(reply.probs, padding), ended=True)


def verdict_of(
    reply: ReplyTokens,
    maps: Mapping[str, NDArray[np.float32]],
    *,
    tokenizer: PromptTokenizer,
    image_size: tuple[int, int],
    mapping: FrameMapping,
    detail: Detail,
) -> Verdict:
    """Parses a reply, and maps its boxes and heatmaps to the image's own pixels.

    Args:
        reply: with probabilities of the digits, if expected scores are wanted.
        maps: heatmaps by name, over the model's square.
        tokenizer: decodes the reply.
        image_size: (width, height) of the image in pixels.
        mapping: between the model's square and the image.
        detail: what was asked for.
    """
    text = tokenizer.decode(reply.ids)
    parsed = parse_reply(text, reasoning=detail == "diagnose", ended=reply.ended)
    # A reply without an end was cut off already, by the limit on its tokens.
    if parsed.problem and reply.ended:
        warnings.warn(parsed.problem, RunWarning, stacklevel=3)
    scores = {**parsed.scores}
    if reply.probs.shape[1]:
        # Each token alone, because a score's digits must be found among the tokens.
        scores |= expected_scores(parsed, text, tokenizer.pieces(reply.ids), reply.probs)
    boxes = (mapping.to_image(box) for box in parsed.boxes)
    heatmaps = {name: Heatmap(grid, image_size, mapping.box) for name, grid in maps.items()}
    return Verdict(
        scores=scores,
        heatmaps=Heatmaps(heatmaps),
        boxes=tuple(box for box in boxes if box is not None),
        text=text,
        detail=detail,
        cost=Cost(verifier_calls=1),
    )
