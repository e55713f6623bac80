"""What the judges of this folder share: loading, moving, and checking images and prompts."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import torch
from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.images import ImageLike, as_images
from tts_verifier.interfaces import Verifier, check_detail, check_pairs
from tts_verifier.types import Cost, Detail, Setting, Verdict
from tts_verifier.verifiers.imagedoctor.requests import check_prompt
from tts_verifier.verifiers.vision_language.inference.engine import QuestionEngine
from tts_verifier.verifiers.vision_language.inference.loading import (
    LoadingOptions,
    check_loading,
    family_config,
    find_folder,
    load_family_model,
    place,
)
from tts_verifier.verifiers.vision_language.inference.processor import load_processor


def in_parts(
    judge: Callable[[slice], list[Verdict]], places: range, refused: Verdict
) -> list[Verdict]:
    """Returns verdicts; what is refused alone too costs its neighbours nothing.

    Args:
        judge: returns the verdicts at some of the places.
        places: of what is to be judged.
        refused: the verdict on what is refused, which gets the reason.
    """
    if not places:
        return []
    try:
        return judge(slice(places.start, places.stop))
    except InputError as error:
        if len(places) == 1:
            return [replace(refused, error=str(error))]
    half = len(places) // 2
    parts = (places[:half], places[half:])
    return [verdict for part in parts for verdict in in_parts(judge, part, refused)]


def load_engine(name: str | Path, options: LoadingOptions) -> QuestionEngine:
    """Loads an image-text-to-text model with its processor.

    Args:
        name: a folder or a hub id.
        options: see `LoadingOptions`.

    Raises:
        CheckpointError: the checkpoint cannot be found, or its parts do not fit together.
        InputError: an option is unknown or not usable.
    """
    check_loading(options)
    folder = find_folder(name, options)
    config = family_config(folder)
    processor = load_processor(folder, config.model_type)
    model = load_family_model(folder, config, options)
    home = place(model, options)
    size = options.get("batch_size")
    return QuestionEngine(model, processor, batch_size=size, home=home)


class VisionLanguageVerifier(Verifier):
    """A judge on an image-text-to-text model of transformers. It has no heatmaps.

    Safe to share between threads: calls wait for each other.

    Args:
        model: a folder, a hub id, or an engine that another judge has loaded.
        settings: what decides a verdict besides the model, for the log.
        **options: see `LoadingOptions`; not used with an engine.

    Raises:
        CheckpointError: the checkpoint cannot be found, or its parts do not fit together.
        InputError: an option is unknown or not usable.
    """

    name: ClassVar[str]
    """The name in recipes."""
    details: tuple[Detail, ...] = ("score",)

    def __init__(
        self,
        model: str | Path | QuestionEngine,
        settings: Mapping[str, Setting],
        **options: Unpack[LoadingOptions],
    ) -> None:
        shared = isinstance(model, QuestionEngine)
        self.engine = model if isinstance(model, QuestionEngine) else self._load(model, options)
        weights = self.engine.model
        self.settings = {
            "verifier": self.name,
            "model": getattr(weights, "name_or_path", "") if shared else str(model),
            "revision": options.get("revision"),
            "dtype": str(weights.dtype).removeprefix("torch."),
            **settings,
        }

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name_or_path: str | Path, **options: Unpack[LoadingOptions]
    ) -> Self:
        """Loads a judge from a folder or a hub id; its own options are arguments of the class."""
        # The constructor of a judge takes its own arguments in place of `settings`.
        judge: Any = cls
        loaded: Self = judge(name_or_path, **options)
        return loaded

    def verify(
        self,
        images: Sequence[ImageLike],
        prompts: Sequence[str],
        *,
        detail: Detail = "diagnose",
    ) -> list[Verdict]:
        """Scores image i against prompt i, in batches; both details give the same.

        Args:
            images: whatever `images.as_image` accepts.
            prompts: any text; names of special tokens in it are only text.
            detail: how the verdict is marked.

        Returns:
            A verdict for each image, in order. A score that the model does not give is NaN, and
            `error` says why; so are those of a prompt that is longer than the model takes, and of
            an image that its processor refuses.

        Raises:
            InputError: an image or a prompt cannot be used, or the lengths differ.
        """
        check_detail(detail)
        rgb = as_images(images)
        texts = check_pairs(rgb, prompts)
        for i, text in enumerate(texts):
            self.check_prompt(i, text)
        unknown = dict.fromkeys(self.score_names or (), math.nan)
        return in_parts(
            lambda part: self.verdicts(rgb[part], texts[part], detail),
            range(len(rgb)),
            Verdict(unknown, detail=detail, cost=Cost(verifier_calls=1)),
        )

    def check_prompt(self, index: int, prompt: str) -> None:
        """Raises InputError for a prompt that cannot be one; a judge may ask for more.

        Args:
            index: of the prompt in a call.
            prompt: the text.
        """
        check_prompt(index, prompt)

    @abstractmethod
    def verdicts(
        self, images: Sequence[Image.Image], prompts: Sequence[str], detail: Detail
    ) -> list[Verdict]:
        """Returns a verdict for each of at least one image and its prompt."""

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return self.engine.device

    @property
    def home(self) -> str | None:
        """The device that a run moves it to for verifying; None = it stays."""
        return self.engine.home

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.engine.nbytes

    def to(self, device: torch.device | str) -> VisionLanguageVerifier:
        """Moves the weights.

        Raises:
            InputError: this machine has no such device.
        """
        self.engine.to(device)
        return self

    def _load(self, model: str | Path, options: LoadingOptions) -> QuestionEngine:
        return load_engine(model, options)
