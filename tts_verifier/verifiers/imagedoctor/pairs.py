"""From pairs of an image and a prompt to what an engine takes, and from its answers to verdicts.

All of it is work of the host that needs neither the model nor torch, so a server does it in a
process of its own, beside that of the engine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.types import Detail, Verdict
from tts_verifier.verifiers.imagedoctor.image import FitMode, FrameMapping, Processor
from tts_verifier.verifiers.imagedoctor.requests import GenerationRequest, check_prompt
from tts_verifier.verifiers.imagedoctor.text import AnswerTemplate, PromptTokenizer
from tts_verifier.verifiers.imagedoctor.text.verdict import ReplyTokens, verdict_of

Answer = tuple[ReplyTokens, Mapping[str, NDArray[np.float32]]]
"""A reply and its heatmaps by name."""


class PreparedPair(NamedTuple):
    """A pair that is ready for an engine."""

    ids: Sequence[int]
    """The tokens before the reply."""
    levels: NDArray[np.uint8]
    """The image, see `Processor.levels`."""


@dataclass(frozen=True, slots=True)
class PairProcessor:
    """Prepares pairs and makes verdicts. It pickles, and may be shared between threads."""

    tokenizer: PromptTokenizer
    """Of the checkpoint."""
    processor: Processor
    """Of the checkpoint."""
    fit: FitMode
    """How an image is fitted into the model's square."""
    template: AnswerTemplate
    """Of answers with detail "score"; an empty one = the model writes them itself."""
    heatmaps: bool | None
    """Whether maps are decoded; None = with detail "diagnose" only."""
    most_tokens: int
    """Of a conversation with its reply."""

    @property
    def live_details(self) -> Collection[Detail]:
        """The details that `ImageDoctor.live` serves. Answers from a template all end at once, so
        they gain nothing from it."""
        details: tuple[Detail, ...] = ("score", "diagnose")
        return details[1:] if self.template.forced_steps else details

    def prepare(self, image: Image.Image, prompt: str, detail: Detail) -> PreparedPair:
        """Prepares a pair for an engine that is live.

        Args:
            image: RGB, of any size.
            prompt: what it should show.
            detail: one of `live_details`.

        Raises:
            InputError: the prompt cannot be used.
            UnsupportedError: it is another detail.
        """
        if detail not in self.live_details:
            raise UnsupportedError(f"live serves {', '.join(self.live_details)}, got {detail!r}.")
        return PreparedPair(self.token_ids(check_prompt(0, prompt), detail), self.levels(image))

    def token_ids(self, prompt: str, detail: Detail) -> list[int]:
        """Returns the tokens of a conversation up to the place where the model writes.

        Raises:
            InputError: the model has no room for them.
        """
        ids = self.tokenizer.encode_conversation(
            prompt,
            image_tokens=self.processor.merged_tokens,
            reasoning=detail == "diagnose",
        )
        ids += self.template_for(detail).before
        if len(ids) >= self.most_tokens:
            raise InputError(
                f"A prompt must fit into the model's {self.most_tokens} tokens with its "
                f"instruction and image; together they take {len(ids)}. Shorten the prompt: "
                f"{prompt[:60]!r}…"
            )
        return ids

    def levels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resizes and cuts an RGB image, see `Processor.levels`."""
        return self.processor.levels(image, fit=self.fit)

    def request(self, pair: PreparedPair) -> GenerationRequest:
        """Returns what an engine takes."""
        processor = self.processor
        return GenerationRequest(
            pair.ids, pair.levels, processor.grid, level_values=processor.level_values
        )

    def template_for(self, detail: Detail) -> AnswerTemplate:
        """Returns the template of a detail's answers, an empty one if there is none."""
        return self.template if detail == "score" else AnswerTemplate()

    def has_maps(self, detail: Detail) -> bool:
        """Says whether maps are decoded."""
        return self.heatmaps if self.heatmaps is not None else detail == "diagnose"

    def verdict(self, size: tuple[int, int], detail: Detail, answer: Answer) -> Verdict:
        """Makes the verdict of an answer.

        Args:
            size: (width, height) of the image in pixels.
            detail: what was asked for.
            answer: of an engine.
        """
        reply, maps = answer
        return verdict_of(
            reply,
            maps,
            tokenizer=self.tokenizer,
            image_size=size,
            mapping=FrameMapping.of(size, self.processor.input_size, fit=self.fit),
            detail=detail,
        )
