"""Turns the result of a search into the images that a pipeline returns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tts_verifier.choice.ranking import Ranked, Ranking
from tts_verifier.errors import RunWarning, UnsupportedError
from tts_verifier.generators.diffusers.batch import BLANKED_ERROR
from tts_verifier.types import Choice, Trial

if TYPE_CHECKING:
    from PIL.Image import Image


class SearchOutcome(NamedTuple):
    """The result of the search for one prompt."""

    choice: Choice
    """The chosen trial, and all finished ones, best first."""
    trials: tuple[Trial, ...]
    """All trials, in the order in which they were made."""


def check_generated(trials: Sequence[Trial]) -> None:
    """Raises UnsupportedError if all candidates failed for one reason, which lies in the call."""
    # Images that a safety checker blanked were generated: the call itself works.
    reasons = {trial.error for trial in trials} - {BLANKED_ERROR}
    generated = any(trial.image or trial.cost.network_evaluations for trial in trials)
    if len(reasons) == 1 and not generated:
        raise UnsupportedError(
            f"At least one candidate must be generated, and every one failed: {reasons.pop()}. "
            "Call the pipeline itself to see where it fails."
        )


def best_images(choice: Choice, count: int) -> list[Image | None]:
    """Returns the images of the `count` best usable trials, None for those that are missing."""
    usable = [t for t in choice.order if t.image is not None and not np.isnan(t.objective)]
    images: list[Image | None] = [t.image.load() for t in usable[:count] if t.image is not None]
    if len(images) < count:
        warnings.warn(
            f"A prompt has {len(images)} usable candidates of the {count} images requested; the "
            "others are None. `trials` has all candidates, with their errors.",
            RunWarning,
            stacklevel=3,
        )
    return images + [None] * (count - len(images))


def ranking_of(outcome: SearchOutcome) -> Ranking:
    """Returns the finished candidates, best first; `index` is the position among the trials."""
    positions = {trial.id: position for position, trial in enumerate(outcome.trials)}
    items = []
    for trial in outcome.choice.order:
        if trial.image is not None and trial.verdict is not None:
            image = trial.image.load()
            items.append(Ranked(positions[trial.id], image, trial.objective, trial.verdict))
    return Ranking(items)


def as_output_type(images: Sequence[Image | None], output_type: str) -> Any:
    """Converts images to one of diffusers' output types.

    Args:
        images: RGB images, None for those that are missing.
        output_type: "pil", "np" or "pt".

    Returns:
        The list itself for "pil". For "np" an array (N, H, W, 3) and for "pt" a tensor
        (N, 3, H, W), both float32 in [0, 1], with NaN for missing images; a list of arrays or
        tensors if the images differ in size.
    """
    import torch

    if output_type == "pil":
        return list(images)
    # From 8 bits, so that the pixels are those that the verifier saw.
    arrays = [None if image is None else np.asarray(image, np.float32) / 255 for image in images]
    shapes = {array.shape for array in arrays if array is not None} or {(0, 0, 3)}
    blank = np.full(next(iter(shapes)), np.nan, np.float32)
    filled: list[Any] = [blank if array is None else array for array in arrays]
    if output_type == "pt":
        filled = [torch.from_numpy(array.transpose(2, 0, 1).copy()) for array in filled]
    if len(shapes) > 1:
        return filled
    return np.stack(filled) if output_type == "np" else torch.stack(filled)
