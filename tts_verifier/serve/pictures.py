"""Bytes and arrays of a request -> pixels in RGB, uint8 (H, W, 3), none larger than the limits.

They stay arrays until a verifier takes them: images of Pillow would copy them twice.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tts_verifier.errors import InputError
from tts_verifier.images import FORMATS, as_image, open_image
from tts_verifier.serve.limits import MemoryShare, Refused, RequestLimits

_CHANNELS: Final = 3


def from_arrays(
    arrays: Mapping[str, NDArray[Any]], limits: RequestLimits, share: MemoryShare
) -> list[NDArray[np.uint8]]:
    """Returns the pixels of a request in safetensors, see `remote.protocol`.

    Raises:
        InputError: an array is no picture, or there are other arrays than pictures.
        Refused: a picture is too large.
    """
    if "images" in arrays and len(arrays) == 1:
        batch = arrays["images"]
        if batch.ndim != 4 or batch.dtype != np.uint8 or _CHANNELS not in batch.shape[1::2]:
            raise InputError(
                "images must be uint8 (N, H, W, 3) or (N, 3, H, W), got "
                f"{batch.dtype} {batch.shape}."
            )
        parts = list(batch if batch.shape[3] == _CHANNELS else batch.transpose(0, 2, 3, 1))
    else:
        names = [f"image.{i}" for i in range(len(arrays))]
        if set(names) != set(arrays):
            raise InputError(
                "Pictures must be one array `images`, or `image.0`, `image.1` and so on without a "
                f"gap, got {', '.join(sorted(arrays))[:200] or 'none'}."
            )
        parts = [arrays[name] for name in names]
    return [_array_picture(i, part, limits, share) for i, part in enumerate(parts)]


def from_texts(
    texts: Sequence[str], limits: RequestLimits, share: MemoryShare
) -> list[NDArray[np.uint8]]:
    """Returns the pixels of files in base64, with or without `data:image/png;base64,` before.

    Raises:
        InputError: a text is no base64, or no picture.
        Refused: a picture is too large.
    """
    return [_from_text(i, text, limits, share) for i, text in enumerate(texts)]


def _from_text(
    place: int,
    text: str,
    limits: RequestLimits,
    share: MemoryShare,
) -> NDArray[np.uint8]:
    head, comma, data = text.partition(",")
    if not comma and ":" not in text[:40]:
        head, data = "data:;base64", text
    if not (head.lower().startswith("data:") and head.lower().endswith("base64")):
        raise InputError(
            f"Image {place} must be a file in base64, or a data URI of one, got {text[:40]!r}. "
            "Addresses are not fetched."
        )
    try:
        # Some encoders break lines.
        content = base64.b64decode("".join(data.split()), validate=True)
        return _file_picture(place, content, limits, share)
    except (binascii.Error, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"Image {place} must be a file in base64, it is not: {error}") from None


def _array_picture(
    place: int, array: NDArray[Any], limits: RequestLimits, share: MemoryShare
) -> NDArray[np.uint8]:
    if array.ndim == 1 and array.dtype == np.uint8:
        return _file_picture(place, array.tobytes(), limits, share)
    if array.ndim != 3 or array.shape[2] != _CHANNELS or array.dtype != np.uint8:
        raise InputError(
            f"Image {place} must be uint8 (H, W, 3), or uint8 (bytes,), a picture file, got "
            f"{array.dtype} {array.shape}."
        )
    if not array.size:
        raise InputError(f"Image {place} needs pixels, it has the shape {array.shape}.")
    _take(place, array.shape[1], array.shape[0], limits, share)
    return np.ascontiguousarray(array)


def _file_picture(
    place: int, data: bytes, limits: RequestLimits, share: MemoryShare
) -> NDArray[np.uint8]:
    try:
        with open_image(io.BytesIO(data)) as image:
            # Before its pixels are decoded.
            _take(place, image.width, image.height, limits, share)
            return np.asarray(as_image(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(place, str(error), limits) from None
    except UnidentifiedImageError:
        raise InputError(
            f"Image {place} must be a picture file, its bytes are none of {', '.join(FORMATS)}."
        ) from None
    except InputError as error:
        raise InputError(f"Image {place}: {error}") from None
    except Refused:
        raise
    # Decoders raise almost anything on a damaged file.
    except Exception as error:
        raise InputError(f"Image {place} must be readable, it is not: {error!r:.200}") from None


def _take(
    place: int,
    width: int,
    height: int,
    limits: RequestLimits,
    share: MemoryShare,
) -> None:
    if width * height > limits.pixels:
        raise _too_large(place, f"{width} x {height}", limits)
    size = _CHANNELS * width * height
    share.pixels += size
    if share.pixels > limits.body:
        raise Refused(
            413,
            f"The pixels of a request's pictures may have {limits.body:,} bytes; those up to image "
            f"{place} have {share.pixels:,}. Send fewer pictures at a time.",
        )
    share.add(size)


def _too_large(place: int, found: str, limits: RequestLimits) -> Refused:
    return Refused(
        413,
        f"A picture may have {limits.pixels:,} pixels; image {place} has {found}. Make it smaller, "
        "or start the server with a larger --max-pixels.",
    )
