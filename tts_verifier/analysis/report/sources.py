"""Addresses of images, heatmaps and masks: relative links to files, or data in the page.

A link is made without opening the file. A page with everything inline has thumbnails.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

import numpy as np
from PIL import Image

from tts_verifier.log.storage.codecs import MASK, heatmap_box
from tts_verifier.types import Box, Heatmap, InFile, Stored, Trial, path_of
from tts_verifier.types.paths import read_inside, stays_inside

_THUMBNAIL: Final = 224
"""Longer side of an inline image, in pixels."""
_FAINT: Final = 0.1
"""A heatmap whose values are all below this marks nothing."""
_SMALL_HEATMAP: Final = 48
"""Longest side of an inline heatmap, in cells."""


@dataclass(frozen=True, slots=True)
class HeatmapLayer:
    """One heatmap over an image."""

    number: int
    """Of its kind, among the page's kinds of heatmaps."""
    source: str
    """Address."""
    name: str
    """Its kind."""
    place: str = ""
    """CSS that lays it over the image; empty = it covers the image."""
    flaw: bool = True
    """False if it was looked at and marks nothing."""


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

    def prepare(self, trials: Sequence[Trial]) -> None:
        """Prepares the files of the trials that are shown next."""

    def image(self, trial: Trial) -> str:
        """Returns the address of a trial's image; empty if it has none."""

    def layer(self, number: int, name: str, stored: Stored[Heatmap]) -> HeatmapLayer:
        """Returns a heatmap, placed over its image."""

    def mask(self, path: str) -> str:
        """Returns the address of a mask by its path in the run folder."""


class LinkedFiles:
    """Relative links from the page to the files of a run folder."""

    def __init__(self, folder: Path, page: Path) -> None:
        self._page = page.resolve().parent
        self._folder, self._start = folder, self._address_of_folder(folder)

    def prepare(self, trials: Sequence[Trial]) -> None:
        """Notes the folder of their files: a run of shards has several."""
        folder = _folder_of(trials, self._folder)
        if folder != self._folder:
            self._folder, self._start = folder, self._address_of_folder(folder)

    def image(self, trial: Trial) -> str:
        """Returns a link."""
        path = path_of(trial.image)
        return self._link(path) if path else ""

    def layer(self, number: int, name: str, stored: Stored[Heatmap]) -> HeatmapLayer:
        """Returns the whole grid, placed with the part that the image covers over the image."""
        return HeatmapLayer(
            number, self._link(path_of(stored)), name, _css_of_box(heatmap_box(stored))
        )

    def mask(self, path: str) -> str:
        """Returns a link."""
        return self._link(path)

    def _address_of_folder(self, folder: Path) -> str:
        relative = Path(os.path.relpath(folder.resolve(), self._page)).as_posix()
        return "" if relative == "." else f"{address_of(relative)}/"

    def _link(self, path: str) -> str:
        return self._start + address_of(path) if stays_inside(path) else ""


@lru_cache(maxsize=256)
def _css_of_box(box: Box) -> str:
    """Returns the CSS that lays a grid over an image that covers a part of it."""
    x1, y1, x2, y2 = box
    across, down = x2 - x1, y2 - y1
    # A damaged box has no size.
    if box == (0, 0, 1, 1) or not (across > 0 and down > 0):
        return ""
    return (
        f"left:{(0 - x1) / across:.3%};top:{(0 - y1) / down:.3%};"
        f"width:{1 / across:.3%};height:{1 / down:.3%}"
    )


def address_of(path: str) -> str:
    """Returns a path as an address in HTML: no letter of it has a meaning there."""
    return quote(path, errors="surrogateescape")


class InlineThumbnails:
    """Thumbnails as data addresses; a file that is missing or changed has an empty one.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, str] = {}

    def prepare(self, trials: Sequence[Trial]) -> None:
        """Makes the thumbnails of trials together, on all cores; forgets those of other trials."""
        self._folder = _folder_of(trials, self._folder)
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

    def layer(self, number: int, name: str, stored: Stored[Heatmap]) -> HeatmapLayer:
        """Returns the part of the grid that the image covers, reduced."""
        source = self._made.get(path_of(stored)) or _heatmap_address(stored)
        return HeatmapLayer(number, source, name)

    def mask(self, path: str) -> str:
        """Returns a PNG."""
        try:
            mask = MASK.decode(read_inside(self._folder, path)).array()
        except Exception:
            return ""
        return data_address(Image.fromarray(mask).convert("L"), "png", _THUMBNAIL)


def _folder_of(trials: Sequence[Trial], default: Path) -> Path:
    """Returns the folder that holds the files of a prompt's trials."""
    images = (trial.image for trial in trials)
    return next((image.folder for image in images if isinstance(image, InFile)), default)


def shown_image(
    trial: Trial, source: Source, kinds: Mapping[str, int] | None, *, read: bool = False
) -> ShownImage | None:
    """Returns a trial's image with its heatmaps and boxes; None if it has no image.

    Args:
        trial: the trial.
        source: finds the addresses.
        kinds: kind of heatmap -> its number on the page; None = the image alone.
        read: read the heatmaps, to say of each whether it marks a flaw.
    """
    address = source.image(trial)
    if not address or trial.size is None:
        return None
    if trial.verdict is None or kinds is None:
        return ShownImage(address, *trial.size, (), ())
    stored = trial.verdict.heatmaps.stored
    layers = [source.layer(kinds[name], name, heatmap) for name, heatmap in stored.items()]
    if read:
        marks = map(_marks, stored.values())
        layers = [replace(layer, flaw=flaw) for layer, flaw in zip(layers, marks, strict=True)]
    boxes = tuple(
        (x1, y1, x2 - x1, y2 - y1)
        for x1, y1, x2, y2 in trial.verdict.boxes
        if x2 >= x1 and y2 >= y1
    )
    return ShownImage(address, *trial.size, tuple(layer for layer in layers if layer.source), boxes)


def _marks(stored: Stored[Heatmap]) -> bool:
    """Returns whether a heatmap marks a flaw; True if it cannot be read."""
    try:
        return bool(stored.load().grid.max() >= _FAINT)
    except Exception:
        return True


def _thumbnail_address(stored: Stored[Image.Image]) -> str:
    try:
        return data_address(stored.load(), "webp", _THUMBNAIL)
    # Pillow raises nearly anything for a damaged file; a report is about the others too.
    except Exception:
        return ""


def _heatmap_address(stored: Stored[Heatmap]) -> str:
    try:
        return _small_heatmap(stored.load())
    except Exception:
        return ""


def _small_heatmap(heatmap: Heatmap) -> str:
    h, w = heatmap.grid.shape
    x1, y1, x2, y2 = heatmap.box
    grey = Image.fromarray(np.rint(heatmap.grid * 255).astype(np.uint8))
    part = (x1 * w, y1 * h, x2 * w, y2 * h)
    size = (min(w, _SMALL_HEATMAP), min(h, _SMALL_HEATMAP))
    return data_address(grey.resize(size, Image.Resampling.BOX, box=part), "png", _SMALL_HEATMAP)


def data_address(image: Image.Image, form: str, largest: int) -> str:
    """Returns an image, made small, as data in the page."""
    small = image.copy()
    small.thumbnail((largest, largest))
    buffer = io.BytesIO()
    # Method 1 takes a third of the default's time for a few per cent of its size.
    small.save(buffer, form, quality=80, method=1)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
