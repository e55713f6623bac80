"""Rows of tokens: a caption and a reply, with the tokens that are learned.

There are three kinds of rows:

- `perception`: an image and the list of its objects, no more. This stage takes the place of Qwen's
  pre-training.
- `cold-start`: an image, the whole reply and both heatmaps, some rows in answer-only mode.
- `text`: no image. The list of objects is part of the prompt; the comparison with the caption, the
  faulty regions and the alignment are learned. This skill needs text alone, and training it without
  images is cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tts_verifier.shapes.grammar import Constraint, Spec
from tts_verifier.shapes.readers.constraints import Reading, match_nouns
from tts_verifier.shapes.vocabulary import SIZE
from tts_verifier.training.miniature.verifier import target_replies
from tts_verifier.training.verifier.answers import ANSWER_START, answer_parts
from tts_verifier.training.verifier.sft_loss import IGNORED
from tts_verifier.training.verifier.token_rows import TokenRow, encode_reply
from tts_verifier.types import Box
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer

RowKind = Literal["perception", "text", "cold-start"]

TEXT_ANSWER_PARTS: Final = 3
"""Parts of the answer that text rows learn: the alignment's label, number and location."""
CHECKED: Final = (
    Constraint("object", 0),
    Constraint("colour", 0),
    Constraint("object", 1),
    Constraint("colour", 1),
    Constraint("count", 0),
    Constraint("relation"),
    Constraint("nothing_else"),
)
"""Every constraint that a caption can have."""
CHECK_CLASSES: Final = 10
"""Classes of a check; no check has more."""
PLACE_BINS: Final = 8
"""Classes of a place along one axis."""
CHECKS: Final = len(CHECKED) + 1 + 4
"""Checks of a row: constraints, the number of things, x and y of what either noun matches."""


@dataclass(frozen=True, slots=True)
class Truth:
    """The facts about an image, as far as they are known."""

    reading: Reading
    """Its objects, compared with a caption."""
    scores: dict[str, float]
    """The four scores in [0, 1] by name; NaN = unknown."""
    artifact: Box | None = None
    """xyxy in pixels of 128 around the artifact, if there is one."""
    kind: str = ""
    """One of ARTIFACT_KINDS, if there is an artifact."""


def check_targets(spec: Spec, reading: Reading) -> list[int]:
    """Says what an image shows of its caption, as `CHECKS` classes; `IGNORED` = not applicable.

    A reply with reasons spells this out. A reply without them must have found it silently, and a
    probe on its first score asks for it.
    """
    holds = [reading.constraints.get(c) for c in CHECKED]
    verdicts = [IGNORED if value is None else int(value) for value in holds]
    places = [IGNORED] * 4
    if spec.category != "counting":
        for index, thing in enumerate(match_nouns(spec, reading.things)):
            if thing is not None:
                bins = (int(v * PLACE_BINS / SIZE) for v in thing.centre)
                places[2 * index : 2 * index + 2] = [min(max(b, 0), PLACE_BINS - 1) for b in bins]
    return [*verdicts, min(len(reading.things), CHECK_CLASSES - 1), *places]


class RowWriter:
    """Turns a caption and the truth about an image into a row of tokens.

    Args:
        tokenizer: of the checkpoint that is trained.
        config: of the same checkpoint.
        side: merged tokens of an image along a side.
    """

    def __init__(self, tokenizer: PromptTokenizer, config: ImageDoctorConfig, side: int) -> None:
        self.tokenizer = tokenizer
        self.side = side
        self._config = config

    def row(
        self, kind: RowKind, caption: str, spec: Spec, truth: Truth, *, answer_only: bool
    ) -> TokenRow:
        """Writes one row.

        Args:
            kind: which parts of the conversation are there and learned.
            caption: the text of the prompt.
            spec: its meaning.
            truth: about the image.
            answer_only: whether the reply is the answer without reasoning; cold-start rows only.
        """
        control = self.tokenizer.control
        merged_tokens = 0 if kind == "text" else self.side**2
        ids = self.tokenizer.encode_conversation(
            caption, image_tokens=merged_tokens, reasoning=not answer_only
        )
        if kind == "text":
            # The template puts these around every image, and here there is none.
            ids = [i for i in ids if i not in (control.vision_start, control.vision_end)]
        labels = [IGNORED] * len(ids)
        for text, learned in _reply_parts(kind, spec, truth, answer_only=answer_only):
            tokens = encode_reply(text, self.tokenizer, self._config)
            ids += tokens
            labels += tokens if learned else [IGNORED] * len(tokens)
        # Only a cold-start row holds a whole reply, which ends here.
        end = [control.im_end] if kind == "cold-start" else []
        return TokenRow(ids + end, labels + end)


def _reply_parts(
    kind: RowKind, spec: Spec, truth: Truth, *, answer_only: bool
) -> list[tuple[str, bool]]:
    """Returns the parts of a reply, each with whether it is learned."""
    reading = truth.reading
    objects = target_replies.objects_text(reading.things)
    if kind == "perception":
        return [(objects + target_replies.CHECKS_START, True)]
    answer = answer_parts(truth.scores)
    if kind == "text":
        regions = target_replies.faulty_regions(reading)
        reasoning = target_replies.reasoning_text(spec, reading, regions)
        learned = reasoning.removeprefix(objects) + ANSWER_START
        return [(objects, False), (learned, True), *answer[:TEXT_ANSWER_PARTS]]
    if answer_only:
        return answer
    regions = target_replies.faulty_regions(reading, truth.artifact, truth.kind)
    reasoning = target_replies.reasoning_text(spec, reading, regions)
    return [(reasoning + ANSWER_START, True), *answer]
