"""Compares two images by what a verifier says of several views of each.

A verifier that reads an image twice, a little shifted, makes other small errors. Their mean tells
apart what one reading leaves tied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from tts_verifier.types import Cost, Verdict
from tts_verifier.types.score_names import EXPECTED

PREFERRED: Final = "preferred"
"""The score of a comparison: how far its first image is preferred, in [0, 1]; 1/2 = a tie."""

_BORDER: Final = 0.04
"""The part of each side that a crop lacks on two of its edges."""
_HOT: Final = 0.012
"""The part of the pixels, the hottest, whose mean is the heat of a map."""
_HEAT_WEIGHT: Final = 1.0
"""How much a map lowers the objective if its hottest part has the value 1. It was chosen, with the
score, the views and the part above, on few near ties of the miniature world
(`examples/benchmarks/FRONTIER.md`)."""
_FITS: Final = "misalignment"
_SCALE: Final = 0.02
"""A difference of marks that makes a preference of 0.88."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The result of an image over its views."""

    value: float
    """Higher is better; NaN if no view says anything."""
    text: str
    """The value in words, or why it is missing."""


def compare_by_views(
    verify: Callable[[Sequence[Image.Image], Sequence[str]], list[Verdict]],
    objective: Callable[[Mapping[str, float]], float],
    pairs: tuple[Sequence[Image.Image], Sequence[Image.Image]],
    prompts: Sequence[str],
) -> list[Verdict]:
    """Returns a comparison for each pair i: of pairs[0][i] and pairs[1][i], for prompt i.

    Args:
        verify: diagnoses images.
        objective: turns scores by name into a number.
        pairs: the first and the second images.
        prompts: one for each pair.
    """
    asked = [*zip(pairs[0], prompts, strict=True), *zip(pairs[1], prompts, strict=True)]
    keys = [(image.size, image.tobytes(), prompt) for image, prompt in asked]
    # A tournament shows each image several times; it is diagnosed once.
    unique = dict(zip(keys, asked, strict=True))
    seen = [(view, prompt) for image, prompt in unique.values() for view in views(image)]
    verdicts = verify([view for view, _ in seen], [prompt for _, prompt in seen])
    each = len(seen) // max(len(unique), 1)
    marks = {
        key: mark_of(verdicts[place * each : (place + 1) * each], objective)
        for place, key in enumerate(unique)
    }
    return [
        preference(marks[one], marks[other])
        for one, other in zip(keys[: len(prompts)], keys[len(prompts) :], strict=True)
    ]


def views(image: Image.Image) -> list[Image.Image]:
    """Returns an image whole and in four crops of 96 % of its sides, one at each corner.

    The crops have the image's size: nothing moves by more than the border, so that relations such
    as "left of" stay what they are.
    """
    width, height = image.size
    x, y = round(_BORDER * width), round(_BORDER * height)
    crops = [
        image.crop((left, top, left + width - x, top + height - y)).resize(
            image.size, Image.Resampling.BICUBIC
        )
        for top in (0, y)
        for left in (0, x)
    ]
    return [image, *crops]


def mark_of(verdicts: Sequence[Verdict], objective: Callable[[Mapping[str, float]], float]) -> Mark:
    """Returns the mark of an image from the verdicts on its views.

    Args:
        verdicts: of the views.
        objective: turns scores by name into a number.
    """
    rows = [(objective(_finest(verdict.scores)), _heat(verdict)) for verdict in verdicts]
    usable = [(value, heat) for value, heat in rows if not math.isnan(value)]
    if not usable:
        return Mark(math.nan, next((v.error for v in verdicts if v.error), "no usable view"))
    value, heat = np.mean(usable, axis=0).tolist()
    return Mark(value - _HEAT_WEIGHT * heat, f"objective {value:.4f}, heat {heat:.4f}")


def preference(first: Mark, second: Mark) -> Verdict:
    """Returns how far the first of two images is preferred; NaN if one has no mark."""
    difference = (first.value - second.value) / _SCALE
    preferred = math.nan if math.isnan(difference) else (1 + math.tanh(difference)) / 2
    text = f"first {first.text}, second {second.text}"
    error = next((mark.text for mark in (first, second) if math.isnan(mark.value)), "")
    return Verdict({PREFERRED: preferred}, text=text, cost=Cost(verifier_calls=1), error=error)


def _finest(scores: Mapping[str, float]) -> dict[str, float]:
    """Returns the scores with the expected ones in place of those with two digits."""
    return {name: scores.get(name + EXPECTED, value) for name, value in scores.items()}


def _heat(verdict: Verdict) -> float:
    """Returns the heat of the hottest part of the maps, the mean over them; 0 without any.

    Where there are maps of misalignment, these alone say whether an image fits its prompt.
    """
    names = sorted(verdict.heatmaps)
    names = [name for name in names if name.endswith(_FITS)] or names
    grids = [verdict.heatmaps[name] for name in names]
    tops = [np.sort(grid, axis=None)[-max(round(_HOT * grid.size), 1) :] for grid in grids]
    return float(np.mean([top.mean() for top in tops])) if tops else 0.0
