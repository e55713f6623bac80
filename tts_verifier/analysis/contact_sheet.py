"""The chosen images of a run: one file per prompt, and one sheet of the first prompts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

from tts_verifier.choice.summary import PromptSummary
from tts_verifier.log.storage.files import Folder
from tts_verifier.types import InFile, Pick, Stored, Trial
from tts_verifier.types.paths import file_names

SHEET_PROMPTS: Final = 16
"""Prompts on the sheet."""
_TILE: Final = 192
"""Longer side of an image on the sheet, in pixels."""
_LINE_HEIGHT: Final = 16
_SHEET_COLUMNS: Final = 4


def write_chosen(rows: Sequence[PromptSummary], folder: Path) -> None:
    """Writes `chosen/<prompt id>.png` and the sheet `chosen.png` into a run folder.

    An id that is no file name, or not everywhere, is replaced by one that is made of it.

    Raises:
        RunError: the folder cannot be written, or holds a link in the place of these files.
    """
    files, names = Folder(folder), file_names(row.prompt.id for row in rows)
    for row in rows:
        if row.chosen is not None and row.chosen.image is not None:
            path = f"chosen/{names[row.prompt.id]}.png"
            # The run folder has them all, so a loss of power may cost these files.
            files.write(path, _stored_png(row.chosen.image), flush=False)
    files.write("chosen.png", _png(sheet(rows[:SHEET_PROMPTS])), flush=False)
    files.sweep()


def write_subsets(subsets: Mapping[str, Sequence[Trial]], k: int, folder: Path) -> Path:
    """Writes `sets_of_K/<prompt id>-<place>.png` into a run folder, the best image as place 1.

    Args:
        subsets: prompt id -> its images, from `RunResult.subsets`.
        k: how many were asked for.
        folder: the run folder.

    Returns:
        The folder of the images.

    Raises:
        RunError: the folder cannot be written, or holds a link in the place of these files.
    """
    files, names = Folder(folder), file_names(subsets)
    for prompt_id, trials in subsets.items():
        for place, trial in enumerate(trials, 1):
            if trial.image is not None:
                path = f"sets_of_{k}/{names[prompt_id]}-{place}.png"
                files.write(path, _stored_png(trial.image), flush=False)
    files.sweep()
    return folder / f"sets_of_{k}"


def _stored_png(image: Stored[Image.Image]) -> bytes:
    # A log's images are PNG files; encoding them again would take the time of a draw.
    return image.read() if isinstance(image, InFile) else _png(image.load())


def sheet(rows: Sequence[PromptSummary]) -> Image.Image:
    """Returns a contact sheet: the first draw beside the chosen image, for every prompt."""
    width, height = 2 * _TILE + 12, _TILE + 2 * _LINE_HEIGHT + 12
    columns = min(_SHEET_COLUMNS, max(len(rows), 1))
    lines = -(-len(rows) // columns)
    canvas = Image.new("RGB", (columns * width, max(lines, 1) * height), "white")
    draw = ImageDraw.Draw(canvas)
    for i, row in enumerate(rows):
        x, y = i % columns * width, i // columns * height
        draw.text((x + 2, y + 2), _as_latin(row.prompt.text), "black")
        for j, (label, pick) in enumerate((("first", row.first), ("chosen", row.comparable))):
            left = x + j * (_TILE + 4)
            caption = f"{label} {pick.objective:.3f}" if pick else f"{label}: none"
            draw.text((left + 2, y + _LINE_HEIGHT), caption, "black")
            _place_image(canvas, pick, (left, y + 2 * _LINE_HEIGHT))
    return canvas


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _place_image(canvas: Image.Image, pick: Pick | None, place: tuple[int, int]) -> None:
    if pick is None or pick.image is None:
        return
    image = pick.image.load()
    scale = _TILE / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    canvas.paste(image.resize(size, Image.Resampling.LANCZOS), place)


def _as_latin(text: str) -> str:
    # Pillow's built-in font has Latin-1 letters only.
    short = text if len(text) <= 60 else text[:59] + "..."
    return short.encode("latin-1", "replace").decode("latin-1")
