"""The page of a training run, from the template. It has no script and loads nothing."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from tts_verifier.analysis.report.rendering import template_environment
from tts_verifier.analysis.report.sources import data_address
from tts_verifier.analysis.report.training_run.curves import curves_of
from tts_verifier.analysis.report.training_run.stored import StoredRun, read_stored
from tts_verifier.analysis.whole_files import write_whole
from tts_verifier.images import as_image, open_image

_SMALL_PICTURE: Final = 320
"""Longer side of a picture in the page, in pixels."""
_SMALL_MAP: Final = 128
"""Longer side of a map in the page, in pixels."""
_MOST_PICTURE: Final = 2**24
"""A larger picture is none of a training run's examples."""
_RATED: Final = "rated_"
_MARKED: Final = "_marked"
_GIVEN: Final = "_map"


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a run took."""

    taken: int
    """Steps."""
    total: int | None
    """Steps of the whole run; None = not said."""
    rows: float
    """NaN = not said, as for the others."""
    seconds: float

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds if self.seconds > 0 else math.nan

    @property
    def left(self) -> float:
        """Seconds that the other steps would take; NaN = not known."""
        if self.total is None:
            return math.nan
        return max(self.total - self.taken, 0) * self.seconds / max(self.taken, 1)

    @property
    def is_whole(self) -> bool:
        """False if steps are left."""
        return self.total is None or self.taken >= self.total


@dataclass(frozen=True, slots=True)
class ShownMap:
    """One map of an example: as the verifier gave it, and as people marked it."""

    name: str
    given: str
    """Address; empty = the reply has none."""
    marked: str
    """Address; empty = not known."""


@dataclass(frozen=True, slots=True)
class Example:
    """A held-out picture, what the trained verifier says of it, and the truth."""

    name: str
    split: str
    step: str
    prompt: str
    reply: str
    picture: str
    """Address; empty = it cannot be read."""
    scores: tuple[tuple[str, float, float], ...]
    """(aspect, truth, the verifier's score); NaN = not known."""
    maps: tuple[ShownMap, ...]


def write_training_report(folder: Path, path: Path) -> None:
    """Writes the page of a training run, finished or running.

    Args:
        folder: of the run.
        path: of the page.

    Raises:
        RunError: a file of the folder is damaged, or the page cannot be written.
        InputError: no step was written yet.
    """
    run = read_stored(folder)
    text = (
        template_environment()
        .get_template("training.html")
        .render(
            title=run.name,
            run=run,
            amounts=amounts_of(run),
            curves=curves_of(run.steps, run.columns),
            examples=[shown_example(row) for row in run.examples],
            place=run.places[-1] if run.places else {},
            checkpoint=(folder / "checkpoint").is_dir(),
        )
    )
    write_whole(path, text, "--output")


def amounts_of(run: StoredRun) -> Amounts:
    """Returns what a run took so far."""

    def whole(name: str) -> float:
        return float(np.nansum(run.columns[name])) if name in run.columns else math.nan

    # Steps are counted from 0.
    return Amounts(int(run.steps[-1]) + 1, run.total, whole("rows"), whole("seconds"))


def shown_example(row: Mapping[str, Any]) -> Example:
    """Returns an example as the page shows it, from a row that may hold anything."""
    aspects = [name.removeprefix(_RATED) for name in row if name.startswith(_RATED)]
    maps = [name.removesuffix(_MARKED) for name in row if name.endswith(_MARKED)]
    return Example(
        name=_shown_text(row.get("picture")),
        split=_shown_text(row.get("split")),
        step=_shown_text(row.get("step")),
        prompt=_shown_text(row.get("prompt")),
        reply=_shown_text(row.get("reply")),
        picture=_address(row.get("image"), "RGB"),
        scores=tuple(
            (a, _finite_or_nan(row[_RATED + a]), _finite_or_nan(row.get(a))) for a in aspects
        ),
        maps=tuple(
            ShownMap(m, _address(row.get(m + _GIVEN), "L"), _address(row[m + _MARKED], "L"))
            for m in maps
        ),
    )


def _shown_text(value: object) -> str:
    return str(value) if isinstance(value, (str, int)) else ""


def _finite_or_nan(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e100 else math.nan


def _address(content: object, mode: str) -> str:
    """Returns a picture of a row as data in the page, drawn anew; empty if it is none."""
    if not isinstance(content, bytes):
        return ""
    try:
        image = open_image(io.BytesIO(content), ("PNG",))
        if image.width * image.height > _MOST_PICTURE:
            return ""
        if mode == "L":
            return data_address(image.convert("L"), "png", _SMALL_MAP)
        return data_address(as_image(image), "webp", _SMALL_PICTURE)
    # Pillow raises nearly anything for a damaged file; the page is about the others too.
    except Exception:
        return ""
