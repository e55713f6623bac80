"""Draws heatmaps and boxes over images, and makes small HTML cards of them for notebooks."""

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

_RAMP_STOPS: Final = np.linspace(0, 1, 5)
_RAMP: Final = np.array(
    [[92, 15, 128], [199, 38, 102], [245, 97, 46], [255, 184, 31], [255, 250, 153]], np.float32
)
"""RGB in [0, 255] at each stop, dark violet to light yellow; lightness grows with the value, so
the ramp can be read in greyscale too."""
# Below 1, so that the flaw itself stays visible under the map.
_OPACITY: Final = 0.6
_BOX_COLOUR: Final = "#ff2d78"
_THUMBNAIL_SIDE: Final = 224


def overlay(
    image: Image.Image,
    maps: Mapping[str, NDArray[np.float32]],
    boxes: Iterable[tuple[float, float, float, float]] = (),
    *,
    name: str | None = None,
) -> Image.Image:
    """Returns an RGB copy of an image with a heatmap and boxes over it.

    Args:
        image: any mode.
        maps: name -> float32 (H, W) in [0, 1], one value for each pixel; 0 leaves a pixel as it is.
        boxes: (x1, y1, x2, y2) in pixels.
        name: the map to show; None = at each pixel the largest value of all maps.

    Raises:
        InputError: there is no map of that name, or a map does not have the image's size.
    """
    if name is not None and name not in maps:
        raise InputError(f"There is no map {name!r}. Available: {', '.join(maps) or 'none'}.")
    # A copy, even of an RGB image.
    shown = image.convert("RGB")
    layers = [maps[n] for n in (maps if name is None else [name])]
    if layers:
        shown = _with_heatmap(shown, np.maximum.reduce(layers))
    pen = ImageDraw.Draw(shown)
    for x1, y1, x2, y2 in boxes:
        # Draw the outline on the outermost pixels inside the box, whose x2 and y2 are exclusive.
        corner = (max(x2 - 1, x1), max(y2 - 1, y1))
        pen.rectangle((x1, y1, *corner), outline=_BOX_COLOUR, width=max(shown.width // 256, 1))
    return shown


def _with_heatmap(image: Image.Image, heatmap: NDArray[np.float32]) -> Image.Image:
    if heatmap.shape != (image.height, image.width):
        raise InputError(
            f"A heatmap must have its image's size, got {heatmap.shape[1]} x {heatmap.shape[0]} "
            f"for an image of {image.width} x {image.height}."
        )
    value = np.clip(heatmap, 0, 1)
    colour = np.stack([np.interp(value, _RAMP_STOPS, _RAMP[:, i]) for i in range(3)], axis=-1)
    # Opacity grows with the value, so low values do not hide the image.
    share = _OPACITY * np.minimum(2 * value, 1)[..., None]
    pixels = (1 - share) * np.asarray(image, np.float32) + share * colour
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def card(
    title: str, images: Sequence[Image.Image], numbers: Mapping[str, float], reply: str = ""
) -> str:
    """Returns one candidate as an HTML fragment.

    Args:
        title: plain text; all texts are escaped.
        images: shown side by side, as thumbnails inside the HTML.
        numbers: name -> value, a table; NaN is shown as a dash.
        reply: the verifier's, folded; empty = none.
    """
    shown = "".join(
        f'<img src="{_data_url(image)}" alt="{escape(title)}" style="max-width:48%;margin:1px">'
        for image in images
    )
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{_number_cell(value)}</td></tr>"
        for name, value in numbers.items()
    )
    folded_reply = (
        f'<details><summary>reply</summary><pre style="white-space:pre-wrap">{escape(reply)}'
        "</pre></details>"
        if reply
        else ""
    )
    return (
        '<div style="display:inline-block;vertical-align:top;width:320px;margin:6px">'
        f"<b>{escape(title)}</b><br>{shown}<table>{rows}</table>{folded_reply}</div>"
    )


def _number_cell(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _data_url(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "webp", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
