"""Turns the result of a search into the images that a pipeline returns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tts_verifier.choice.ranking import Ranked, Ranking
from tts_verifier.errors import RunWarning, UnsupportedError
from tts_verifier.generators.diffusers.batch import BLANKED_ERROR, INTERRUPTED_ERROR
from tts_verifier.types import VERIFIES_ONLY, Choice, Trial

if TYPE_CHECKING:
    from PIL.Image import Image


class SearchOutcome(NamedTuple):
    """The result of the search for one prompt."""

    choice: Choice
    """The chosen trial, and all finished ones, best first."""
    trials: tuple[Trial, ...]
    """All trials, in the order in which they were made."""
    interrupted: bool = False
    """Whether the pipeline was stopped."""


class Returned(NamedTuple):
    """An image that a call returns."""

    image: Image | None
    """None if there are too few candidates."""
    verified: bool
    """Whether it was chosen by its verdict; if not, it has no usable verdict."""


def check_generated(trials: Sequence[Trial]) -> None:
    """Raises UnsupportedError if all candidates failed for one reason, which lies in the call."""
    # Images that a safety checker blanked were generated: the call itself works.
    # So were those that somebody interrupted.
    errors = {t.error for t in trials if not t.error.startswith(INTERRUPTED_ERROR)}
    reasons = errors - {BLANKED_ERROR}
    generated = any(trial.image or trial.cost.network_evaluations for trial in trials)
    if len(reasons) == 1 and not generated:
        raise UnsupportedError(
            f"At least one candidate must be generated, and every one failed: {reasons.pop()}. "
            "Call the pipeline itself to see where it fails."
        )


def best_images(outcome: SearchOutcome, count: int) -> list[Returned]:
    """Returns the images of the `count` best usable trials.

    If these are too few, images without a usable verdict follow, finished ones first and in the
    order in which they were drawn, and then None.
    """
    order = outcome.choice.order
    usable = [t for t in order if t.image is not None and not np.isnan(t.objective)][:count]
    chosen = {trial.id for trial in usable}
    # Looks and comparisons have their parents' images.
    images = [t for t in outcome.trials if not isinstance(t.proposal, VERIFIES_ONLY)]
    others = [t for t in images if t.id not in chosen and t.image is not None]
    drawn = sorted(others, key=lambda t: -t.progress)
    unusable = drawn[: count - len(usable)]
    missing = count - len(usable) - len(unusable)
    if unusable or missing:
        _warn_of_unusable(outcome, usable, unusable, missing)
    # `image` is not None, which the filters above have seen to.
    pairs = [(t.image, True) for t in usable] + [(t.image, False) for t in unusable]
    returned = [Returned(image.load(), verified) for image, verified in pairs if image is not None]
    return returned + [Returned(None, False)] * missing


def _warn_of_unusable(
    outcome: SearchOutcome, usable: Sequence[Trial], unusable: Sequence[Trial], missing: int
) -> None:
    total = len(usable) + len(unusable) + missing
    said = f"A prompt has {len(usable)} usable candidates of the {total} images requested."
    if unusable:
        whole = sum(trial.progress >= 1 for trial in unusable)
        part = f" (unfinished: {len(unusable) - whole})" if whole < len(unusable) else ""
        said += (
            f" {len(unusable)} drawn without a usable verdict follow{part}: {unusable[0].error}."
        )
    if missing:
        said += f" {missing} are None."
    warnings.warn(
        f"{said} `verified` marks the images; `trials` has all candidates, with their errors.",
        RunWarning,
        stacklevel=4,
    )


def ranking_of(outcome: SearchOutcome) -> Ranking:
    """Returns the finished candidates, best first; `index` is the position among the trials."""
    positions = {trial.id: position for position, trial in enumerate(outcome.trials)}
    items = []
    for trial in outcome.choice.order:
        if trial.image is not None and trial.verdict is not None:
            image = trial.image.load()
            items.append(Ranked(positions[trial.id], image, trial.objective, trial.verdict))
    return Ranking(items)


def as_html(rankings: Sequence[tuple[str, Ranking]]) -> str:
    """Returns the candidates of each prompt as HTML for a notebook, best first.

    Args:
        rankings: prompts with their candidates.
    """
    return "".join(f"<p>{escape(text)}</p>{ranking._repr_html_()}" for text, ranking in rankings)


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
