"""Addresses of images, heatmaps and masks: relative links to files, or data in the page.

A link is made without opening the file. A page with everything inline has thumbnails.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

import numpy as np
from PIL import Image

from tts_verifier.errors import InputError, RunError
from tts_verifier.images import as_image
from tts_verifier.log.storage.codecs import heatmap_box
from tts_verifier.types import Heatmap, Stored, Trial, path_of

_THUMBNAIL: Final = 224
"""Longer side of an inline image, in pixels."""
_SMALL_HEATMAP: Final = 48
"""Longest side of an inline heatmap, in cells."""


@dataclass(frozen=True, slots=True)
class HeatmapLayer:
    """One heatmap over an image."""

    number: int
    """Of its kind, among the page's kinds of heatmaps."""
    source: str
    """Address."""
    place: str = ""
    """CSS that lays it over the image; empty = it covers the image."""


@dataclass(frozen=True, slots=True)
class ShownImage:
    """An image with its heatmaps and boxes."""

    source: str
    """Address."""
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    layers: tuple[HeatmapLayer, ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    """(x, y, width, height) in pixels of the image."""


class Source(Protocol):
    """Finds the addresses of the images, heatmaps and masks of a run."""

    def image(self, trial: Trial) -> str:
        """Returns the address of a trial's image; empty if it has none."""

    def layer(self, number: int, stored: Stored[Heatmap]) -> HeatmapLayer:
        """Returns a heatmap, placed over its image."""

    def mask(self, path: str) -> str:
        """Returns the address of a mask by its path in the run folder."""


class LinkedFiles:
    """Relative links from the page to the files of a run folder."""

    def __init__(self, folder: Path, page: Path) -> None:
        self._folder, self._page = folder.resolve(), page.resolve().parent

    def image(self, trial: Trial) -> str:
        """Returns a link."""
        path = path_of(trial.image)
        return self._link(path) if path else ""

    def layer(self, number: int, stored: Stored[Heatmap]) -> HeatmapLayer:
        """Returns the whole grid, placed with the part that the image covers over the image."""
        address = self._link(path_of(stored))
        x1, y1, x2, y2 = box = heatmap_box(stored)
        if box == (0, 0, 1, 1):
            return HeatmapLayer(number, address)
        across, down = x2 - x1, y2 - y1
        place = (
            f"left:{(0 - x1) / across:.3%};top:{(0 - y1) / down:.3%};"
            f"width:{1 / across:.3%};height:{1 / down:.3%}"
        )
        return HeatmapLayer(number, address, place)

    def mask(self, path: str) -> str:
        """Returns a link."""
        return self._link(path)

    def _link(self, path: str) -> str:
        return quote(Path(os.path.relpath(self._folder / path, self._page)).as_posix())


class InlineThumbnails:
    """Thumbnails as data addresses; a file that is missing or changed has an empty one.

    The constructor makes the thumbnails of all `trials` together, on all cores.
    """

    def __init__(self, folder: Path, trials: Sequence[Trial] = ()) -> None:
        self._folder = folder
        todo: dict[str, Callable[[], str]] = {}
        for trial in trials:
            if trial.image is not None:
                todo[path_of(trial.image)] = partial(_thumbnail_address, trial.image)
            heatmaps = {} if trial.verdict is None else trial.verdict.heatmaps.stored
            todo |= {
                path_of(stored): partial(_heatmap_address, stored) for stored in heatmaps.values()
            }
        todo.pop("", None)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            made = threads.map(lambda make: make(), todo.values(), chunksize=16)
            self._made = dict(zip(todo, made, strict=True))

    def image(self, trial: Trial) -> str:
        """Returns a WebP thumbnail."""
        if trial.image is None:
            return ""
        return self._made.get(path_of(trial.image)) or _thumbnail_address(trial.image)

    def layer(self, number: int, stored: Stored[Heatmap]) -> HeatmapLayer:
        """Returns the part of the grid that the image covers, reduced."""
        return HeatmapLayer(number, self._made.get(path_of(stored)) or _heatmap_address(stored))

    def mask(self, path: str) -> str:
        """Returns a PNG."""
        try:
            mask = as_image(self._folder / path).convert("L")
            return _data_address(mask, "png", _THUMBNAIL)
        except InputError:
            return ""


def shown_image(trial: Trial, source: Source, kinds: Mapping[str, int]) -> ShownImage | None:
    """Returns a trial's image with its heatmaps and boxes; None if it has no image.

    Args:
        trial: the trial.
        source: finds the addresses.
        kinds: kind of heatmap -> its number on the page.
    """
    address = source.image(trial)
    if not address or trial.size is None:
        return None
    if trial.verdict is None:
        return ShownImage(address, *trial.size, (), ())
    layers = [source.layer(kinds[n], s) for n, s in trial.verdict.heatmaps.stored.items()]
    boxes = tuple((x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in trial.verdict.boxes)
    return ShownImage(address, *trial.size, tuple(layer for layer in layers if layer.source), boxes)


def _thumbnail_address(stored: Stored[Image.Image]) -> str:
    try:
        return _data_address(stored.load(), "webp", _THUMBNAIL)
    except RunError:
        return ""


def _heatmap_address(stored: Stored[Heatmap]) -> str:
    try:
        heatmap = stored.load()
    except RunError:
        return ""
    h, w = heatmap.grid.shape
    x1, y1, x2, y2 = heatmap.box
    grey = Image.fromarray(np.rint(heatmap.grid * 255).astype(np.uint8))
    part = (x1 * w, y1 * h, x2 * w, y2 * h)
    size = (min(w, _SMALL_HEATMAP), min(h, _SMALL_HEATMAP))
    return _data_address(grey.resize(size, Image.Resampling.BOX, box=part), "png", _SMALL_HEATMAP)


def _data_address(image: Image.Image, form: str, largest: int) -> str:
    small = image.copy()
    small.thumbnail((largest, largest))
    buffer = io.BytesIO()
    # Method 1 takes a third of the default's time for a few per cent of its size.
    small.save(buffer, form, quality=80, method=1)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
