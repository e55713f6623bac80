"""Pictures, maps and masks as addresses: relative links to files, or data in the page.

A link needs no look at the file; a page with everything inline holds thumbnails.
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
from typing import Any, Final, Protocol
from urllib.parse import quote

import numpy as np
from PIL import Image

from tts_verifier.errors import RunError
from tts_verifier.log.storage.codecs import heatmap_box
from tts_verifier.types import Heatmap, Stored, Trial, path_of

_THUMBNAIL: Final = 224
_MAP: Final = 48

Row = Mapping[str, Any]
"""A row of the log."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One map over a picture: its number among the page's maps, address and CSS place."""

    number: int
    source: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with its layers; sizes in pixels, boxes (x, y, width, height) in the same."""

    source: str
    width: int
    height: int
    layers: tuple[Layer, ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()


class Source(Protocol):
    """Finds the addresses of what a trial has."""

    def image(self, trial: Trial) -> str:
        """Returns the address of a trial's picture, empty if it has none."""

    def layer(self, number: int, stored: Stored[Heatmap]) -> Layer:
        """Returns a map as it lies on the image."""

    def mask(self, path: str) -> str:
        """Returns the address of a mask by its path in the run folder."""


class Linked:
    """Relative links from the page to the files of a run folder."""

    def __init__(self, folder: Path, page: Path) -> None:
        self._folder, self._page = folder.resolve(), page.resolve().parent

    def image(self, trial: Trial) -> str:
        """Returns a link."""
        path = path_of(trial.image)
        return self.mask(path) if path else ""

    def layer(self, number: int, stored: Stored[Heatmap]) -> Layer:
        """Returns the whole grid, placed so that its covered part lies on the image."""
        address = self.mask(path_of(stored))
        x1, y1, x2, y2 = box = heatmap_box(stored)
        if box == (0, 0, 1, 1):
            return Layer(number, address)
        across, down = x2 - x1, y2 - y1
        place = (
            f"left:{(0 - x1) / across:.3%};top:{(0 - y1) / down:.3%};"
            f"width:{1 / across:.3%};height:{1 / down:.3%}"
        )
        return Layer(number, address, place)

    def mask(self, path: str) -> str:
        """Returns a link to a file of the run folder."""
        return quote(Path(os.path.relpath(self._folder / path, self._page)).as_posix())


class Inline:
    """Thumbnails as data addresses; a file that is gone or changed has none.

    Those of all `trials` are made at once, on all cores.
    """

    def __init__(self, folder: Path, trials: Sequence[Trial] = ()) -> None:
        self._folder = folder
        todo: dict[str, Callable[[], str]] = {}
        for trial in trials:
            if trial.image is not None:
                todo[path_of(trial.image)] = partial(_thumbnail, trial.image)
            maps = {} if trial.verdict is None else trial.verdict.heatmaps.stored
            todo |= {path_of(stored): partial(_small_map, stored) for stored in maps.values()}
        todo.pop("", None)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            made = threads.map(lambda make: make(), todo.values(), chunksize=16)
            self._made = dict(zip(todo, made, strict=True))

    def image(self, trial: Trial) -> str:
        """Returns a WebP thumbnail."""
        if trial.image is None:
            return ""
        return self._made.get(path_of(trial.image)) or _thumbnail(trial.image)

    def layer(self, number: int, stored: Stored[Heatmap]) -> Layer:
        """Returns the part of the grid that lies on the image, made small."""
        return Layer(number, self._made.get(path_of(stored)) or _small_map(stored))

    def mask(self, path: str) -> str:
        """Returns a PNG."""
        try:
            return _data(Image.open(self._folder / path).convert("L"), "png", _THUMBNAIL)
        except OSError:
            return ""


def picture(trial: Trial, source: Source, maps: Mapping[str, int]) -> Picture | None:
    """Returns a trial's picture with its maps and boxes, None if it has none.

    Args:
        trial: whose picture.
        source: where files are found.
        maps: the page's numbers of maps by name.
    """
    address = source.image(trial)
    if not address or trial.size is None:
        return None
    if trial.verdict is None:
        return Picture(address, *trial.size, (), ())
    layers = [source.layer(maps[n], s) for n, s in trial.verdict.heatmaps.stored.items()]
    boxes = tuple((x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in trial.verdict.boxes)
    return Picture(address, *trial.size, tuple(layer for layer in layers if layer.source), boxes)


def _thumbnail(stored: Stored[Image.Image]) -> str:
    try:
        return _data(stored.load(), "webp", _THUMBNAIL)
    except RunError:
        return ""


def _small_map(stored: Stored[Heatmap]) -> str:
    try:
        heatmap = stored.load()
    except RunError:
        return ""
    h, w = heatmap.grid.shape
    x1, y1, x2, y2 = heatmap.box
    grey = Image.fromarray(np.rint(heatmap.grid * 255).astype(np.uint8))
    part = (x1 * w, y1 * h, x2 * w, y2 * h)
    size = (min(w, _MAP), min(h, _MAP))
    return _data(grey.resize(size, Image.Resampling.BOX, box=part), "png", _MAP)


def _data(image: Image.Image, form: str, largest: int) -> str:
    small = image.copy()
    small.thumbnail((largest, largest))
    buffer = io.BytesIO()
    # Method 1 takes a third of the default's time for a few per cent of its size.
    small.save(buffer, form, quality=80, method=1)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
