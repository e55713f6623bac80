"""Encodes values as files: images, heatmaps and masks as PNG, states as NumPy archives.

Codecs hold no state that changes: threads may share them, and they pickle.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from tts_verifier.images import open_image
from tts_verifier.types import Box, Heatmap, InFile, Mask, State, Stored

ValueT = TypeVar("ValueT")


class Codec(Protocol[ValueT]):
    """Turns a value into a file's bytes and back. Must pickle."""

    def encode(self, value: ValueT) -> bytes:
        """Returns the file's bytes."""
        ...

    def decode(self, content: bytes) -> ValueT:
        """Returns the value."""
        ...


@dataclass(frozen=True, slots=True)
class ImageCodec:
    """RGB images as PNG."""

    def encode(self, value: Image.Image) -> bytes:
        """Returns a PNG file."""
        return png(value)

    def decode(self, content: bytes) -> Image.Image:
        """Returns the RGB image of a PNG file."""
        return _open_png(content).convert("RGB")


@dataclass(frozen=True, slots=True)
class HeatmapCodec:
    """Heatmaps as 8-bit grey PNG on the decoder's grid."""

    size: tuple[int, int]
    """The image's (width, height) in pixels, as in `Heatmap`."""
    box: Box
    """The part of the grid that the image covers, as in `Heatmap`."""

    def encode(self, value: Heatmap) -> bytes:
        """Returns a PNG file; rounds values to 1/255."""
        return png(Image.fromarray(np.rint(np.clip(value.grid, 0, 1) * 255).astype(np.uint8)))

    def decode(self, content: bytes) -> Heatmap:
        """Returns the heatmap of a grey PNG file."""
        grid = np.asarray(_open_png(content)).astype(np.float32)
        return Heatmap(grid / np.float32(255), self.size, self.box)


@dataclass(frozen=True, slots=True)
class MaskCodec:
    """Masks as black and white PNG, white = may be repainted."""

    def encode(self, value: Mask) -> bytes:
        """Returns a PNG file."""
        return png(Image.fromarray(value.array()))

    def decode(self, content: bytes) -> Mask:
        """Returns the mask of a PNG file."""
        return Mask.of(np.asarray(_open_png(content)).astype(np.bool_))


@dataclass(frozen=True, slots=True)
class StateCodec:
    """Generator states as NumPy archives."""

    def encode(self, value: State) -> bytes:
        """Returns an .npz file."""
        buffer = io.BytesIO()
        # Not compressed: latents are close to noise, which hardly shrinks.
        np.savez(buffer, **dict(value))  # type: ignore[arg-type]
        return buffer.getvalue()

    def decode(self, content: bytes) -> State:
        """Returns the arrays of an .npz file; refuses pickled objects."""
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # What `encode` writes is not compressed, so it cannot take more memory than its file.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("the arrays of a state are not compressed, these are")
        # A pickle in a run folder from somebody else could run any code.
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


@dataclass(frozen=True, slots=True)
class CopyCodec:
    """Values in another run folder's files, byte for byte. The value's own decoder reads them."""

    def encode(self, value: InFile[Any]) -> bytes:
        """Returns the file's bytes, checked."""
        return value.read()

    def decode(self, content: bytes) -> Any:
        """Is never called."""
        raise NotImplementedError


def heatmap_box(stored: Stored[Heatmap]) -> Box:
    """Returns the part of the grid that a heatmap's image covers, without reading its file."""
    if isinstance(stored, InFile) and isinstance(stored.decoder, HeatmapCodec):
        return stored.decoder.box
    return stored.load().box


IMAGE: Final = ImageCodec()
MASK: Final = MaskCodec()
STATE: Final = StateCodec()
COPY: Final = CopyCodec()


def _open_png(content: bytes) -> Image.Image:
    # A run folder from somebody else may hold anything under the name of a PNG file.
    try:
        return open_image(io.BytesIO(content), ("PNG",))
    except UnidentifiedImageError:
        # Pillow's own message names an object in memory.
        raise ValueError("it is no PNG file") from None


def png(image: Image.Image) -> bytes:
    """Returns a PNG file."""
    buffer = io.BytesIO()
    # Level 1 is several times faster than the default; files are about a tenth larger.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
