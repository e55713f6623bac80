"""What a reward server and its clients send: JSON, beside arrays in safetensors. No pickles.

A message is a file in the format of safetensors whose metadata has one key, `message`, with JSON:

- a request: `protocol`, `prompts`, `detail`, `maps`. Its arrays are the pictures: `image.0`,
  `image.1` and so on, uint8 (H, W, 3) in RGB, or uint8 (bytes,), a picture file. Pictures of one
  size may be one array, `images`, (N, H, W, 3) or (N, 3, H, W).
- an answer: `protocol`, `version`, `verifier`, `checkpoint`, `missing` and `results`, one for
  each picture. Its arrays are the maps: `0.misalignment`, float32 (rows, columns).

In JSON without safetensors, arrays are text in base64 (see `serve`).
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from tts_verifier.errors import InputError
from tts_verifier.types import Box, Cost, Heatmap, Heatmaps, Verdict

PROTOCOL: Final = 1
"""Changes whenever a program of the other side would misread a message."""
MEDIA_TYPE: Final = "application/x-safetensors"
TOKEN_VARIABLE: Final = "TTS_SERVE_TOKEN"
"""The environment variable that holds the token, on both sides."""

_MOST_HEADER: Final = 1 << 25
"""Bytes of a header: the names of arrays, and all prompts or replies."""
_DTYPES: Final[Mapping[str, Any]] = {"U8": np.uint8, "F32": np.dtype("<f4")}


def pack_message(message: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Returns a message as bytes.

    Args:
        message: JSON values; NaN must be None.
        arrays: uint8 or float32.
    """
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(whole, {"message": dump(message).decode()})


def unpack_message(body: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Returns the message and the arrays of some bytes, without running anything in them.

    Raises:
        InputError: they are a pickle, cut off, no safetensors, or without a message.
    """
    length = int.from_bytes(body[:8], "little")
    if len(body) < 8 or length > min(_MOST_HEADER, len(body) - 8):
        # A header may have the same first byte, but then its length is small.
        if body[:1] == b"\x80" and body[1:2] <= b"\x05":
            raise InputError(
                "A body must be safetensors or JSON; this one is a pickle, which could run code "
                "and is never read. Use tts_verifier's own clients instead of pickled ones."
            )
        raise InputError(
            f"A body of safetensors must begin with the length of its header; this one has "
            f"{len(body)} bytes, and its header would have {length}. It is cut off or something "
            "else."
        )
    try:
        header = load(body[8 : 8 + length])
        message = load(header["__metadata__"]["message"])
        parts: Any = deserialize(body)  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise InputError(
            "A body must be whole safetensors with a `message` of JSON in its metadata; this one "
            f"is not: {error!r:.200}"
        ) from None
    if not isinstance(message, dict):
        raise InputError(f"A message must be an object of JSON, got a {type(message).__name__}.")
    return message, {name: _array(name, part) for name, part in parts}


def _array(name: str, part: Mapping[str, Any]) -> NDArray[Any]:
    if part["dtype"] not in _DTYPES:
        raise InputError(
            f"Arrays must be {' or '.join(_DTYPES)}; {name:.80} is {part['dtype']}. Pictures are "
            "uint8 in [0, 255]."
        )
    try:
        return np.frombuffer(part["data"], _DTYPES[part["dtype"]]).reshape(part["shape"])
    # More axes than numpy has; or without elements, but too long.
    except ValueError as error:
        raise InputError(
            f"An array must have a shape that numpy can hold; that of {name:.80} is "
            f"{part['shape']!s:.80}: {error}"
        ) from None


def load(text: str | bytes) -> Any:
    """Returns the value of strict JSON.

    Raises:
        ValueError: it is none, has NaN or a number that no float holds, or an object has a key
            twice, of which another program would read another one.
        RecursionError: it is too deep.
    """
    return json.loads(
        text,
        object_pairs_hook=_without_repeats,
        parse_constant=_refuse,
        parse_float=_refuse_infinite,
    )


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {repeated[:80]!r} comes twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _refuse_infinite(number: str) -> float:
    """Returns the value of a number, which must not be 1e999."""
    if math.isinf(found := float(number)):
        raise ValueError(f"{number:.40} is too large for a float")
    return found


def dump(value: object) -> bytes:
    """Returns strict JSON: ASCII, so that half a letter in a prompt cannot break it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def token_of(text: str | None) -> str | None:
    """Returns a token without the white space around it, as a file has; None = there is none.

    Raises:
        InputError: no header can hold it.
    """
    token = (text or "").strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        # Without the token, since errors are logged.
        raise InputError(
            "A token must be printable ASCII without spaces, the one given is not. Choose another "
            f"one, and set {TOKEN_VARIABLE} to it on both sides."
        )
    return token or None


def json_number(value: float) -> float | None:
    """Returns a number that JSON can hold; None for NaN and infinities."""
    return float(value) if math.isfinite(value) else None


def encode_verdict(
    verdict: Verdict, objective: float, maps: Mapping[str, Heatmap]
) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Returns a verdict as JSON values, and its maps as arrays.

    Args:
        verdict: its own maps are left out.
        objective: its value; NaN becomes null, as a score does.
        maps: the maps to send, by name.
    """
    result = {
        "objective": json_number(objective),
        "scores": {name: json_number(value) for name, value in verdict.scores.items()},
        "boxes": [[json_number(edge) for edge in box] for box in verdict.boxes],
        "reply": verdict.text,
        "error": verdict.error,
        "detail": verdict.detail,
        "maps": {
            name: {"size": [*map(int, m.size)], "box": [*map(float, m.box)]}
            for name, m in maps.items()
        },
    }
    return result, {name: m.grid.astype(np.float32) for name, m in maps.items()}


def decode_verdict(
    result: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], size: tuple[int, int]
) -> Verdict:
    """Returns the verdict that `encode_verdict` was given, with the maps that were sent.

    Args:
        result: of one picture.
        arrays: its maps.
        size: the picture's (width, height).

    Raises:
        ValueError, TypeError, KeyError: it is no such result.
    """
    maps = {name: _map_of(name, about, arrays, size) for name, about in result["maps"].items()}
    reply, detail = result["reply"], result["detail"]
    if not isinstance(reply, str) or detail not in ("score", "diagnose"):
        raise ValueError(f"reply and detail must be texts, got {reply!r:.40} and {detail!r:.40}")
    scores = {name: _number_of(value) for name, value in result["scores"].items()}
    boxes = tuple(_box_of(box) for box in result["boxes"])
    # A server of an earlier version does not say it.
    error = result.get("error", "")
    if not isinstance(error, str):
        raise ValueError(f"error must be a text, got {error!r:.40}")
    return Verdict(scores, Heatmaps(maps), boxes, reply, detail, Cost(verifier_calls=1), error)


def _map_of(
    name: str, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], size: tuple[int, int]
) -> Heatmap:
    grid, box = arrays[name], _box_of(about["box"])
    x1, y1, x2, y2 = box
    if grid.ndim != 2 or not grid.size or grid.dtype != np.float32:
        raise ValueError(f"map {name:.40} must be float32 (h, w), got {grid.dtype} {grid.shape}")
    if [*about["size"]] != [*size] or not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
        raise ValueError(
            f"map {name:.40} must lie over a picture of {size}, got {about['size']!r:.40}, {box}"
        )
    # NaN is not in [0, 1] either.
    if not (grid.min() >= 0 and grid.max() <= 1):
        raise ValueError(f"map {name:.40} must be in [0, 1]")
    return Heatmap(grid, size, box)


def _box_of(values: Sequence[Any]) -> Box:
    x1, y1, x2, y2 = map(_number_of, values)
    return x1, y1, x2, y2


def _number_of(value: Any) -> float:
    """Returns a number of an answer; null is NaN."""
    if value is None:
        return math.nan
    if type(value) not in (int, float) or abs(value) > sys.float_info.max:
        raise ValueError(f"a number must be one or null, got {value!r:.40}")
    return float(value)


def arrays_of(place: int, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Returns the arrays of one picture of a message, by the rest of their names."""
    start = f"{place}."
    return {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}


def request_of(
    images: Sequence[NDArray[np.uint8]], prompts: Sequence[str], detail: str, maps: object
) -> bytes:
    """Returns the request for some pictures, each uint8 (H, W, 3)."""
    message = {"protocol": PROTOCOL, "prompts": list(prompts), "detail": detail, "maps": maps}
    return pack_message(message, {f"image.{i}": image for i, image in enumerate(images)})
