"""Reads and writes `tf.train.Example`, the messages inside TFRecord files, without protobuf.

An Example maps names to features; a feature is a list of bytes, of float32 or of int64:

    Example      1: Features
    Features     1: entry, repeated        an entry has 1: the name and 2: the Feature
    Feature      1: BytesList, 2: FloatList or 3: Int64List
    each list    1: values, repeated       numbers packed into one field, or a field each

(TensorFlow, `core/example/feature.proto`; protobuf's "Encoding" describes the bytes.) Unknown
fields are skipped, and of two entries of one name the later one counts, as protobuf does it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tts_verifier.errors import InputError

Feature = list[bytes] | NDArray[np.float32] | NDArray[np.int64]
"""The values of one name."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Kinds of fields, by protobuf's numbers."""
_FIXED_SIZE: Final = {_FIXED64: 8, _FIXED32: 4}
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


def parse_example(data: bytes) -> dict[str, Feature]:
    """Returns the features of a serialised Example by name; one without a kind is empty bytes.

    Raises:
        InputError: the bytes are not an Example.
    """
    try:
        features = b"".join(_nested(data, 1))
        return dict(_entry(entry) for entry in _nested(features, 1))
    except (ValueError, IndexError, struct.error) as error:
        raise InputError(
            f"A record must be a tf.train.Example, this one of {len(data)} bytes is not: {error}."
        ) from error


def serialise_example(features: Mapping[str, Feature | Sequence[float]]) -> bytes:
    """Returns a serialised Example. Names are sorted, so that equal features give equal bytes.

    Args:
        features: lists of bytes, or numbers: an array of integers becomes int64, any other float32.
    """
    entries = [
        _field(1, _field(1, name.encode()) + _field(2, _feature(features[name])))
        for name in sorted(features)
    ]
    return _field(1, b"".join(entries))


# -- reading -------------------------------------------------------------------------------


def _entry(entry: bytes) -> tuple[str, Feature]:
    name, feature = b"", b""
    for number, kind, value in _fields(entry):
        if number == 1 and kind == _BYTES:
            name = value
        elif number == 2 and kind == _BYTES:
            feature = value
    return name.decode(), _values(feature)


def _values(feature: bytes) -> Feature:
    values: Feature = []
    for number, kind, content in _fields(feature):
        if kind != _BYTES:
            continue
        if number == _BYTES_LIST:
            values = _nested(content, 1)
        elif number == _FLOAT_LIST:
            parts = [part for n, _, part in _fields(content) if n == 1]
            values = np.frombuffer(b"".join(parts), "<f4").astype(np.float32)
        elif number == _INT64_LIST:
            values = _integers(content)
    return values


def _integers(content: bytes) -> NDArray[np.int64]:
    numbers: list[int] = []
    for number, kind, part in _fields(content):
        if number != 1:
            continue
        # A field of its own is that number's varint; a packed one holds many of them.
        at = 0
        while at < len(part):
            value, at = _varint(part, at)
            numbers.append(value)
            if kind == _VARINT:
                break
    return np.array(numbers, np.uint64).astype(np.int64)


def _nested(data: bytes, wanted: int) -> list[bytes]:
    return [value for number, kind, value in _fields(data) if (number, kind) == (wanted, _BYTES)]


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yields (number, kind, bytes) of every field of a message; a varint as its own bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind, start = key >> 3, key & 7, at
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _BYTES:
            length, start = _varint(data, at)
            at = start + length
        elif kind in _FIXED_SIZE:
            at += _FIXED_SIZE[kind]
        else:
            raise ValueError(f"a field of unknown kind {kind} at byte {start}")
        if at > len(data):
            raise ValueError(f"a field at byte {start} ends {at - len(data)} bytes too late")
        yield number, kind, data[start:at]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns the number that starts at a byte, and where the next field starts."""
    value = shift = 0
    while True:
        # Past the end, this is the IndexError that `parse_example` expects.
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            raise ValueError(f"a number that is longer than ten bytes before byte {at}")


# -- writing -------------------------------------------------------------------------------


def _feature(values: Feature | Sequence[float]) -> bytes:
    if isinstance(values, list) and all(isinstance(value, bytes) for value in values):
        content = b"".join(_field(1, value) for value in values if isinstance(value, bytes))
        return _field(_BYTES_LIST, content)
    numbers = np.asarray(values)
    if np.issubdtype(numbers.dtype, np.integer):
        packed = b"".join(_encoded(int(n) & 0xFFFFFFFFFFFFFFFF) for n in numbers)
        return _field(_INT64_LIST, _field(1, packed))
    return _field(_FLOAT_LIST, _field(1, numbers.astype("<f4").tobytes()))


def _field(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(content)) + content


def _encoded(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
