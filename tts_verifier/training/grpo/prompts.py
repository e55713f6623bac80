"""The pictures and prompts of each step, prepared while the device works on the step before."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tts_verifier.errors import InputError
from tts_verifier.evaluation.rated import RatedPicture
from tts_verifier.training.grpo.settings import GrpoSettings
from tts_verifier.training.richhf.dataset import read_split
from tts_verifier.training.richhf.prepared import PreparedPictures
from tts_verifier.training.verifier.preprocess import DevicePreprocess
from tts_verifier.types.score_names import SCORE_NAMES
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint

PURPOSE: Final = "grpo"
"""Of the seeds of a run's order and replies."""


@dataclass(frozen=True, slots=True, eq=False)
class RatedPrompt:
    """A conversation to be answered several times, and the truth that replies are rewarded by."""

    place: int
    """Its number among all prompts of the run, which decides what its replies are drawn with."""
    prompt: str
    """What the picture was generated for."""
    ids: list[int]
    """The conversation up to the reply."""
    patches: NDArray[np.float32]
    """The picture as the processor gives it; all requests of a group share this array."""
    scores: list[float]
    """The true scores, in the order of `SCORE_NAMES`."""
    misalignment: NDArray[np.float32]
    """(H, W) in [0, 1], the true map; rewards read it once for all replies."""
    artifact: NDArray[np.float32]
    """Likewise."""


class PromptSource:
    """Rated pictures in a new order in every epoch; the prompts of a step depend on its number.

    Args:
        checkpoint: that is trained.
        settings: of the run.
        seed: decides the order.

    Raises:
        InputError: the data cannot be read, or lack pictures, prompts or maps.
    """

    def __init__(self, checkpoint: Checkpoint, settings: GrpoSettings, seed: int) -> None:
        if not Path(settings.data).exists():
            raise InputError(
                f"data must be a folder of RichHF-18K or of its miniature; {settings.data!r} does "
                "not exist. tts-train miniature-richhf makes one.",
                argument="data",
            )
        pictures = read_split(Path(settings.data), settings.split).pictures
        self._tokenizer, self._processor = checkpoint.tokenizer, checkpoint.processor
        self._preprocess = DevicePreprocess(checkpoint.processor)
        self._count = settings.prompts
        self._pictures = PreparedPictures(
            pictures,
            checkpoint.processor,
            seed=seed,
            purpose=PURPOSE,
            with_maps=True,
            in_memory=settings.in_memory,
        )
        self._ids: dict[str, list[int]] = {}
        if settings.in_memory:
            self._ids = {picture.name: self._encode(picture) for picture in pictures}

    def step(self, step: int, share: range) -> list[RatedPrompt]:
        """Returns the prompts of a step with these numbers."""
        places = [step * self._count + number for number in share]
        chosen = [self._pictures.at(place) for place in places]
        tensors = [self._pictures.tensors(picture, with_maps=True) for picture in chosen]
        patches = self._preprocess(torch.stack([pixels for pixels, _ in tensors]))
        maps = [maps.numpy().astype(np.float32) / 255 for _, maps in tensors if maps is not None]
        return [
            RatedPrompt(
                place,
                picture.prompt,
                self._ids.get(picture.name) or self._encode(picture),
                picture_patches.numpy(),
                [picture.scores[name] for name in SCORE_NAMES],
                *picture_maps,
            )
            for place, picture, picture_patches, picture_maps in zip(
                places, chosen, patches.chunk(len(places)), maps, strict=True
            )
        ]

    def _encode(self, picture: RatedPicture) -> list[int]:
        tokens = self._processor.merged_tokens
        return self._tokenizer.encode_conversation(
            picture.prompt, image_tokens=tokens, reasoning=True
        )


def prompts_ahead(
    source: PromptSource, steps: range, share: range
) -> Iterator[tuple[int, list[RatedPrompt]]]:
    """Yields each step with its prompts; a thread prepares those of the next one meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(source.step, steps[0], share) if steps else None
        for step in steps:
            if coming is None:
                raise RuntimeError("a step has prompts")
            prompts = coming.result()
            coming = thread.submit(source.step, step + 1, share) if step != steps[-1] else None
            yield step, prompts
