"""Converts anything that holds an image to a PIL image in RGB, once, where a user passes it in.

- PIL image: any mode but LAB. EXIF orientation is applied, transparency is composited over white,
  CMYK is converted without a colour profile. Greys of 16 bits are scaled to 8 bits; greys of 32
  bits are in [0, 255] if no pixel is above 255, and in [0, 65535] otherwise.
- numpy array: (H, W) or (H, W, C), uint8 in [0, 255] or floating in [0, 1]; C is 1, 3 or 4.
- torch tensor: (H, W) or (C, H, W), the same types and ranges, on any device.
- path: a regular file of one of `FORMATS` (by content, whatever its suffix), of at most
  `MAX_PIXELS`; its first frame counts.

Anything else in a file, or a damaged one, is an `InputError` whatever the decoder raises.

Floats may leave [0, 1] by 1e-3, as rounding does, and are clipped. Values further out, NaN, other
dtypes and empty images are refused. An image may be as small as one pixel.

The functions keep no state and may be called from several threads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from tts_verifier.errors import InputError, readable_name
from tts_verifier.images.formats import FORMATS, check_format, open_image
from tts_verifier.images.listed import as_list
from tts_verifier.loading.regular_files import open_regular

if TYPE_CHECKING:
    import torch

ImageLike: TypeAlias = "Image.Image | NDArray[Any] | torch.Tensor | str | os.PathLike[str]"

# Just below the 89,478,485 pixels above which Pillow itself warns.
MAX_PIXELS: Final = 89_000_000
"""Pixels that an image file may have; a larger one is refused as a decompression bomb."""

_SLACK: Final = 1e-3
# Scaled by their decoder to 16 bits, so a dark picture may stay below 256.
_SIXTEEN_BIT_FILES: Final = ("PNG", "PPM")


def as_image(image: ImageLike) -> Image.Image:
    """Converts an image to a PIL image of mode RGB. The result is loaded and always a copy.

    Args:
        image: a PIL image, numpy array, torch tensor or path, as listed at the top.

    Raises:
        InputError: the image cannot be read, or its shape, dtype or range is not listed.
    """
    if isinstance(image, (str, os.PathLike)):
        return _from_file(image)
    if isinstance(image, Image.Image):
        try:
            check_format(image)
            return _to_rgb(image)
        except InputError:
            raise
        # The file may still be unread, and decoders raise almost anything on a damaged one.
        except Exception as error:
            raise InputError(f"An image must be readable, this one is not: {error!r}") from error
    if isinstance(image, np.ndarray):
        return _from_array(image, "numpy array")
    if _is_tensor(image):
        return _from_tensor(image)
    raise InputError(
        "An image must be a PIL image, a numpy array, a torch tensor or a path, got "
        f"a {type(image).__name__}."
    )


def as_images(images: Iterable[ImageLike]) -> list[Image.Image]:
    """Converts every image of a sequence by `as_image`.

    Args:
        images: any iterable of images, or a batch: an (N, H, W, C) array or an (N, C, H, W)
            tensor.

    Raises:
        InputError: `images` is one image, or one of the images cannot be used (the message
            has its index).
    """
    single = isinstance(images, (str, os.PathLike, Image.Image))
    is_array = isinstance(images, np.ndarray) or _is_tensor(images)
    axes = getattr(images, "ndim", 0) if is_array else 0
    if single or axes in (2, 3):
        raise InputError(
            "A sequence of images is needed, got one "
            f"{type(images).__name__}. Put it into a list: [image]."
        )
    # An array of four axes is a batch; as_list refuses what has no images as its items.
    listed = images if axes == 4 else as_list(images, "images")
    converted = []
    for i, image in enumerate(listed):
        try:
            converted.append(as_image(image))
        except InputError as error:
            raise InputError(f"Image {i}: {error}") from error
    return converted


def read_image(file: BinaryIO, name: str) -> Image.Image:
    """Converts a picture file that is open to a PIL image of mode RGB, as `as_image` does a path.

    Args:
        file: a binary file from `open_regular`, or in memory; it stays open.
        name: of the picture, for messages.

    Raises:
        InputError: it is none of `FORMATS`, is damaged, or has more than `MAX_PIXELS`.
    """
    try:
        # Pillow's warnings, such as of damaged metadata, pass through: to silence them here would
        # change the filters of the whole process, which other threads use meanwhile.
        with open_image(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}x{image.height}")
            return _to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"An image file must have at most {MAX_PIXELS:,} pixels, {name} has more "
            f"({error}). Make it smaller."
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"An image file must be readable, {name} is not: its content is none of "
            f"{', '.join(FORMATS)}."
        ) from error
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except OSError as error:
        raise unreadable(name, error) from error
    # Decoders raise almost anything on a damaged file: RuntimeError, struct.error, MemoryError, ...
    except Exception as error:
        raise InputError(f"An image file must be readable, {name} is not: {error!r}") from error


def unreadable(name: str, error: OSError) -> InputError:
    """Returns the error for an image file that the system does not let us read."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"There is no image file {name}.")
    reason = error.strerror or error
    return InputError(f"An image file must be readable, {name} is not: {reason}")


def _from_file(path: str | os.PathLike[str]) -> Image.Image:
    name = readable_name(path)
    try:
        with open_regular(path) as file:
            return read_image(file, name)
    except OSError as error:
        raise unreadable(name, error) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode to RGB; returns a copy without metadata that no longer needs the file."""
    if not image.width or not image.height:
        raise InputError(f"An image needs pixels, this one is {image.width}x{image.height}.")
    if image.mode == "LAB":
        raise InputError("An image of mode LAB is not read. Convert it to RGB by its profile.")
    # A copy has no format.
    sixteen_bits = image.mode != "I" or image.format in _SIXTEEN_BIT_FILES
    # Metadata may follow the pixels in a file.
    image.load()
    # exif_transpose copies an upright image too.
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    # Pillow would clip these modes at 255 instead of scaling them.
    if image.mode == "F":
        return _from_array(np.asarray(image), "PIL image of mode F")
    if image.mode == "I" or image.mode.startswith("I;"):
        return _from_grey_integers(image, sixteen_bits=sixteen_bits)
    if image.mode == "La":
        # Pillow converts premultiplied greys to nothing else.
        image = image.convert("LA")
    if image.has_transparency_data:
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    # A new image, even if this one is in RGB.
    rgb = image.convert("RGB")
    # A PNG file would inherit the colour profile.
    rgb.info = {}
    return rgb


def _from_grey_integers(image: Image.Image, *, sixteen_bits: bool) -> Image.Image:
    """Converts modes I and I;16; without `sixteen_bits` the values tell how many bits they have."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(
            "A grey image of integers must stay in [0, 65535] (16 bits), this one has "
            f"[{values.min()}, {values.max()}]."
        )
    if sixteen_bits or values.max() > 255:
        # 65535 = 257 * 255, so white stays white.
        values = np.rint(values / 257)
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _is_tensor(image: object) -> bool:
    # If torch was never imported, nothing is a tensor, and importing it takes seconds.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def _from_tensor(tensor: torch.Tensor) -> Image.Image:
    if tensor.ndim == 4:
        raise InputError(
            f"One image is needed, got a batch of shape {tuple(tensor.shape)}. Take one of it "
            "(batch[0]), or pass the whole batch as the list of images."
        )
    if tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4):
        raise InputError(
            "A torch image must have the shape (H, W) or (C, H, W) with 1, 3 or 4 channels, "
            f"got {tuple(tensor.shape)}. Move the channels to the front: permute(2, 0, 1)."
        )
    try:
        tensor = tensor.detach().cpu()
        # NumPy has no bfloat16.
        if tensor.is_floating_point():
            tensor = tensor.float()
        array = tensor.numpy()
    # On the meta device, sparse, quantised, ...
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"A torch image must have plain numbers, got {tensor.dtype}, {tensor.layout}, on "
            f"{tensor.device}: {error}"
        ) from error
    return _from_array(array.transpose(1, 2, 0) if array.ndim == 3 else array, "torch tensor")


def _from_array(array: NDArray[Any], what: str) -> Image.Image:
    if array.ndim == 4:
        raise InputError(
            f"One image is needed, got a batch of shape {array.shape}. Take one of it "
            "(batch[0]), or pass the whole batch as the list of images."
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(
            "An image array must have the shape (H, W) or (H, W, C) with 1, 3 or 4 channels, "
            f"got {array.shape}."
        )
    if not array.size:
        raise InputError(f"An image needs pixels, this {what} has the shape {array.shape}.")
    if np.issubdtype(array.dtype, np.floating):
        array = _floats_to_bytes(array)
    elif array.dtype != np.uint8:
        raise InputError(
            "An image's numbers must be uint8 in [0, 255] or floating in [0, 1], got "
            f"{array.dtype}. If they are in [0, 255], use array.astype('uint8')."
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    image = Image.fromarray(np.ascontiguousarray(array))
    # Pillow has four bytes for a pixel in RGB, so such an image is a copy of the array already.
    return image if image.mode == "RGB" else _to_rgb(image)


def _floats_to_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = float(array.min()), float(array.max())
    # Written so that NaN, with which every comparison is false, is refused too.
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise InputError(
            "An image of floating numbers must stay in [0, 1], without NaN; this one has "
            f"[{low:g}, {high:g}]. Divide by 255, or map [-1, 1] by (x + 1) / 2."
        )
    values = array.astype(np.float32)
    np.clip(values, 0, 1, out=values)
    values *= 255
    return np.rint(values, out=values).astype(np.uint8)
