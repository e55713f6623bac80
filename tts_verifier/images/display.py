"""Pictures with their maps and boxes drawn in, and small cards of them for notebooks."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tts_verifier.errors import InputError

_STOPS: Final = np.linspace(0, 1, 5)
_RAMP: Final = np.array(
    [[92, 15, 128], [199, 38, 102], [245, 97, 46], [255, 184, 31], [255, 250, 153]], np.float32
)
"""From dark violet to light yellow: its lightness grows with the value."""
_OPACITY: Final = 0.6
_BOX: Final = "#ff2d78"
_CARD: Final = 224


def overlay(
    image: Image.Image,
    maps: Mapping[str, NDArray[np.float32]],
    boxes: Iterable[tuple[float, float, float, float]] = (),
    *,
    name: str | None = None,
) -> Image.Image:
    """Returns an RGB copy of a picture with a map laid over it and boxes drawn.

    Args:
        image: any mode.
        maps: by name, float32 (H, W) in [0, 1] on the picture's pixels; 0 leaves them be.
        boxes: (x1, y1, x2, y2) in pixels.
        name: of the map to show; None shows the largest value of all at every pixel.

    Raises:
        InputError: there is no map of that name, or it is of another size.
    """
    if name is not None and name not in maps:
        raise InputError(f"There is no map {name!r}. Available: {', '.join(maps) or 'none'}.")
    shown = image.convert("RGB")
    found = [maps[n] for n in (maps if name is None else [name])]
    if found:
        shown = _heated(shown, np.maximum.reduce(found))
    pen = ImageDraw.Draw(shown)
    for x1, y1, x2, y2 in boxes:
        # A box's edge lies on the pixels inside it.
        corner = (max(x2 - 1, x1), max(y2 - 1, y1))
        pen.rectangle((x1, y1, *corner), outline=_BOX, width=max(shown.width // 256, 1))
    return shown


def _heated(image: Image.Image, heatmap: NDArray[np.float32]) -> Image.Image:
    if heatmap.shape != (image.height, image.width):
        raise InputError(
            f"A map must have its picture's size, got {heatmap.shape[1]} x {heatmap.shape[0]} "
            f"for a picture of {image.width} x {image.height}."
        )
    value = np.clip(heatmap, 0, 1)
    colour = np.stack([np.interp(value, _STOPS, _RAMP[:, i]) for i in range(3)], axis=-1)
    # Faint values stay see-through, so that no flaw hides the picture.
    share = _OPACITY * np.minimum(2 * value, 1)[..., None]
    pixels = (1 - share) * np.asarray(image, np.float32) + share * colour
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def card(
    title: str, pictures: Sequence[Image.Image], numbers: Mapping[str, float], text: str = ""
) -> str:
    """Returns one candidate as HTML: pictures, numbers by name, and the reply to unfold."""
    shown = "".join(
        f'<img src="{_address(picture)}" alt="{escape(title)}" style="max-width:48%;margin:1px">'
        for picture in pictures
    )
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{_number(value)}</td></tr>"
        for name, value in numbers.items()
    )
    reply = (
        f'<details><summary>reply</summary><pre style="white-space:pre-wrap">{escape(text)}'
        "</pre></details>"
        if text
        else ""
    )
    return (
        '<div style="display:inline-block;vertical-align:top;width:320px;margin:6px">'
        f"<b>{escape(title)}</b><br>{shown}<table>{rows}</table>{reply}</div>"
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _address(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((_CARD, _CARD))
    buffer = io.BytesIO()
    small.save(buffer, "webp", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
