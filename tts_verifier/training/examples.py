"""Held-out pictures of a training run: what the trained verifier says of them, beside the truth.

    OUTPUT/examples.parquet   one row for each picture, small enough for a page

A row has `picture` (a name), `split` (where it is from), `step` (steps that the verifier was
trained for), `prompt`, `reply` and `image` (PNG); for each aspect `ASPECT` and `rated_ASPECT`; for
each map `MAP_map` and `MAP_marked` (grey PNG, 255 = flawed). What the reply does not give is null.
`tts-report` shows them without a model.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tts_verifier import Verifier
from tts_verifier.errors import InputError, RunWarning, TTSError
from tts_verifier.evaluation.rated import ASPECTS, MARKED_MAPS, RatedPicture
from tts_verifier.training.richhf.dataset import read_split
from tts_verifier.types import Detail, Verdict
from tts_verifier.types.score_names import SCORE_NAMES
from tts_verifier.verifiers.imagedoctor.verifier import ImageDoctor

EXAMPLES_FILE: Final = "examples.parquet"
HELD_OUT_SPLITS: Final = ("dev", "test")
"""Where examples are taken from, in this order of preference."""
_PICTURE_SIDE: Final = 320
"""Longer side of a stored picture, in pixels."""
_MAP_SIDE: Final = 128
"""Longer side of a stored map, in pixels."""
_SEED: Final = 2**31 - 1
"""Of the miniature's examples, which are the same in all runs."""


class Examples(NamedTuple):
    """Rated pictures to show."""

    pictures: Sequence[RatedPicture]
    """At least one."""
    split: str
    """Where they are from, in words."""


def examples_of(data: Path, split: str, count: int) -> Examples:
    """Returns pictures of a folder of ratings: held-out ones, or else some of the trained split.

    Args:
        data: the folder, or one file of it, see `richhf.dataset`.
        split: that is trained.
        count: the most pictures.

    Raises:
        InputError: a file of the trained split is missing or damaged.
    """
    for name in HELD_OUT_SPLITS if data.is_dir() else ():
        if name != split:
            # A missing or damaged split does not matter to the training.
            with suppress(InputError):
                return Examples(read_split(data, name, limit=count).pictures, name)
    return Examples(read_split(data, split, limit=count).pictures, f"{split}, seen in training")


def miniature_examples(count: int) -> Examples:
    """Returns pictures of the miniature world whose captions training never sees."""
    from tts_verifier.training.miniature.verifier.checks import held_out_images

    held = held_out_images(count, _SEED)
    scores = held.flawed.scores.tolist()
    maps = {"artifact": held.flawed.artifacts.map, "misalignment": held.flawed.misalignment}
    bytes_of = {name: (255 * m).round().to(torch.uint8).numpy() for name, m in maps.items()}
    return Examples(
        [
            RatedPicture(
                f"held-out {i}",
                image,
                caption,
                dict(zip(SCORE_NAMES, scores[i], strict=True)),
                {name: grids[i] for name, grids in bytes_of.items()},
            )
            for i, (image, caption) in enumerate(zip(held.images, held.captions, strict=True))
        ],
        "held-out captions",
    )


def show_checkpoint(
    folder: Path,
    choose: Callable[[], Examples],
    *,
    step: int,
    device: torch.device,
    detail: Detail = "diagnose",
) -> None:
    """Writes what the checkpoint of a run says of pictures.

    A failure is a `RunWarning`, because the training is kept.

    Args:
        folder: of the run, with its checkpoint in `checkpoint`.
        choose: returns the pictures.
        step: steps that the checkpoint was trained for.
        device: of the verifier; the memory of the training is free by now.
        detail: "score" for a verifier that has learned answers alone.
    """
    try:
        verifier = ImageDoctor.from_pretrained(folder / "checkpoint", device=device)
        write_examples(folder, verifier, choose(), step=step, detail=detail)
    except (TTSError, OSError, torch.cuda.OutOfMemoryError) as error:
        warnings.warn(
            f"The examples for the report are not written: {error} The checkpoint is; the same "
            "command tries again.",
            RunWarning,
            stacklevel=2,
        )


def write_examples(
    folder: Path,
    verifier: Verifier,
    examples: Examples,
    *,
    step: int,
    detail: Detail = "diagnose",
) -> None:
    """Verifies pictures and writes them with the verdicts and the truth, whole or not at all.

    Args:
        folder: of the run.
        verifier: that was trained.
        examples: the pictures.
        step: steps that it was trained for.
        detail: as of `Verifier.verify`.

    Raises:
        InputError: a picture cannot be read.
        OSError: the file cannot be written.
    """
    import pyarrow
    from pyarrow import parquet

    images = [p.image() for p in examples.pictures]
    verdicts = verifier.verify(images, [p.prompt for p in examples.pictures], detail=detail)
    common = {"split": examples.split, "step": step}
    rows = [
        common | _row(picture, image, verdict)
        for picture, image, verdict in zip(examples.pictures, images, verdicts, strict=True)
    ]
    draft = folder / "examples.draft"
    parquet.write_table(pyarrow.Table.from_pylist(rows), draft)
    draft.replace(folder / EXAMPLES_FILE)


def _row(picture: RatedPicture, image: Image.Image, verdict: Verdict) -> dict[str, Any]:
    row: dict[str, Any] = {
        "picture": picture.name,
        "prompt": picture.prompt,
        "reply": verdict.text,
        "image": _png_bytes(image, _PICTURE_SIDE),
    }
    for aspect in ASPECTS:
        score = float(verdict.scores.get(aspect, math.nan))
        row |= {aspect: None if math.isnan(score) else score}
        row |= {f"rated_{aspect}": float(picture.scores[aspect])}
    for name in MARKED_MAPS:
        given = verdict.heatmaps.get(name)
        row[f"{name}_map"] = None if given is None else _grey(255 * given)
        row[f"{name}_marked"] = _grey(picture.maps[name])
    return row


def _grey(values: NDArray[Any]) -> bytes:
    return _png_bytes(Image.fromarray(np.rint(values).astype(np.uint8)), _MAP_SIDE)


def _png_bytes(image: Image.Image, largest: int) -> bytes:
    small = image.copy()
    small.thumbnail((largest, largest))
    buffer = io.BytesIO()
    small.save(buffer, "png")
    return buffer.getvalue()
