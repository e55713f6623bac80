"""Opens picture files: the one place in the package that hands bytes to Pillow's decoders.

Only the formats below are opened, by content and whatever the suffix says. Pillow registers some
forty others, among them PostScript, which it gives to Ghostscript, and containers that open what
they hold as any format.
"""

from __future__ import annotations

from contextlib import suppress
from typing import BinaryIO, Final

from PIL import (  # noqa: F401  (importing a plug-in registers its format)
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from tts_verifier.errors import InputError

# Pillow has it from version 11.3.
with suppress(ImportError):
    from PIL import AvifImagePlugin  # noqa: F401

_NAMES: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF")
FORMATS: Final = tuple(name for name in _NAMES if name in Image.OPEN)
"""The formats that are opened; PPM covers PBM, PGM, PNM and PFM."""
SUFFIXES: Final = frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in FORMATS)
"""The suffixes of these formats, in lower case: what counts as a picture in a folder."""


def open_image(file: BinaryIO, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Opens a picture; its pixels are decoded when they are first used.

    Args:
        file: a binary file from `open_regular`, or in memory; it stays open.
        formats: the formats to try; some of `FORMATS`.

    Raises:
        UnidentifiedImageError: the file has none of the formats. Damaged files may raise any other
            exception.
    """
    return Image.open(file, formats=formats)


def check_format(image: Image.Image) -> None:
    """Raises InputError for an image whose pixels other formats' decoders would still read."""
    unread = isinstance(image, ImageFile.ImageFile) and getattr(image, "tile", None)
    if unread and image.format not in (*FORMATS, "MPO"):
        raise InputError(
            f"Pictures of the format {image.format} are not read. The formats are: "
            f"{', '.join(FORMATS)}. If you trust the file, call image.load() first."
        )
