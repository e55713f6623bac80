"""The chosen images of a run: one file per prompt, and one sheet of the first prompts."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from PIL import Image, ImageDraw

from tts_verifier.analysis.whole_files import write_whole
from tts_verifier.choice.objective import Pick
from tts_verifier.choice.summary import PromptSummary
from tts_verifier.errors import RunError

SHEET_PROMPTS: Final = 16
"""Prompts on the sheet."""
_TILE: Final = 192
"""Longer side of an image on the sheet, in pixels."""
_LONGEST_NAME: Final = 200
"""Letters of a file's name that an id gives; 255 is the most that file systems accept."""
_LINE_HEIGHT: Final = 16
_SHEET_COLUMNS: Final = 4


def write_chosen(rows: Sequence[PromptSummary], folder: Path) -> None:
    """Writes `chosen/<prompt id>.png` and the sheet `chosen.png` into a run folder.

    Raises:
        RunError: the folder cannot be written.
    """
    chosen = folder / "chosen"
    try:
        chosen.mkdir(parents=True, exist_ok=True)
        if chosen.is_symlink():
            raise RunError(f"{chosen} is a link, and images are written into the run folder only.")
        for row in rows:
            if row.chosen is not None and row.chosen.image is not None:
                image = row.chosen.image.load()
                write_whole(chosen / f"{_name_of(row.prompt.id)}.png", _png(image), "--output")
        write_whole(folder / "chosen.png", _png(sheet(rows[:SHEET_PROMPTS])), "--output")
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error}.") from error


def _name_of(prompt_id: str) -> str:
    """Returns the name of a prompt's file; it names no other folder, and no system refuses it."""
    name = quote(prompt_id, safe=" ", errors="surrogatepass")
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(prompt_id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{name[:_LONGEST_NAME]}.{digest[:16]}"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


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
        for j, (label, pick) in enumerate((("first", row.first), ("chosen", row.chosen))):
            left = x + j * (_TILE + 4)
            caption = f"{label} {pick.objective:.3f}" if pick else f"{label}: none"
            draw.text((left + 2, y + _LINE_HEIGHT), caption, "black")
            _place_image(canvas, pick, (left, y + 2 * _LINE_HEIGHT))
    return canvas


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
