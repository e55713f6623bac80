"""Chosen pictures where people look for them: one file a prompt, and one sheet of them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from PIL import Image, ImageDraw

from tts_verifier.choice.objective import Pick
from tts_verifier.choice.summary import PromptSummary
from tts_verifier.errors import RunError

SHEET_PROMPTS: Final = 16
_TILE: Final = 192
_TEXT: Final = 16
_COLUMNS: Final = 4


def write_chosen(rows: Sequence[PromptSummary], folder: Path) -> None:
    """Writes `chosen/<prompt id>.png` and the sheet `chosen.png` into a run folder.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        (folder / "chosen").mkdir(parents=True, exist_ok=True)
        for row in rows:
            if row.chosen is not None and row.chosen.image is not None:
                # Quoted, so that no id can name a file elsewhere.
                name = quote(row.prompt.id, safe=" ")
                row.chosen.image.load().save(folder / "chosen" / f"{name}.png")
        sheet(rows[:SHEET_PROMPTS]).save(folder / "chosen.png")
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error}.") from error


def sheet(rows: Sequence[PromptSummary]) -> Image.Image:
    """Returns a contact sheet: for every prompt the first draw beside the chosen picture."""
    width, height = 2 * _TILE + 12, _TILE + 2 * _TEXT + 12
    columns = min(_COLUMNS, max(len(rows), 1))
    lines = -(-len(rows) // columns)
    canvas = Image.new("RGB", (columns * width, max(lines, 1) * height), "white")
    draw = ImageDraw.Draw(canvas)
    for i, row in enumerate(rows):
        x, y = i % columns * width, i // columns * height
        draw.text((x + 2, y + 2), _latin(row.prompt.text), "black")
        for j, (label, trial) in enumerate((("first", row.first), ("chosen", row.chosen))):
            left = x + j * (_TILE + 4)
            caption = f"{label} {trial.objective:.3f}" if trial else f"{label}: none"
            draw.text((left + 2, y + _TEXT), caption, "black")
            _paste(canvas, trial, (left, y + 2 * _TEXT))
    return canvas


def _paste(canvas: Image.Image, trial: Pick | None, place: tuple[int, int]) -> None:
    if trial is None or trial.image is None:
        return
    picture = trial.image.load()
    scale = _TILE / max(picture.size)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    canvas.paste(picture.resize(size, Image.Resampling.LANCZOS), place)


def _latin(text: str) -> str:
    # Pillow's built-in font knows no other letters.
    short = text if len(text) <= 60 else text[:59] + "..."
    return short.encode("latin-1", "replace").decode("latin-1")
