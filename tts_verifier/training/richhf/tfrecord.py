"""Reads and writes TFRecord files, without TensorFlow.

A file is a sequence of records, and nothing else. A record is

    uint64  length of the data
    uint32  masked CRC-32C of these eight bytes
    bytes   the data
    uint32  masked CRC-32C of the data

in little-endian order. A checksum is masked by a rotation of 15 bits to the right and the addition
of 0xA282EAD8 (TensorFlow, `lib/io/record_writer.h` and `lib/hash/crc32c.h`). Both checksums are
verified: a changed byte is an error, wherever it is.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from tts_verifier.errors import InputError
from tts_verifier.loading.regular_files import open_regular

_MASK_DELTA: Final = 0xA282EAD8
_HEAD: Final = struct.Struct("<QI")
_CHECKSUM: Final = struct.Struct("<I")
_LFS_POINTER: Final = b"version https://git-lfs"
_GZIP: Final = b"\x1f\x8b"


def read_records(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yields the data of every record of a file, in order.

    Raises:
        InputError: the file cannot be read, is cut short or was changed; the message has the
            number of the record and the byte at which it starts.
    """
    crc32c = _crc32c()
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            number = 0
            while (start := file.tell()) < size:
                yield _read_record(file, size, f"{path}: record {number} (byte {start})", crc32c)
                number += 1
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def write_records(path: str | os.PathLike[str], records: Iterable[bytes]) -> int:
    """Writes a file of records, whole or not at all, and returns their number.

    Raises:
        OSError: the file cannot be written.
    """
    crc32c = _crc32c()
    goal, count = Path(path), 0
    draft = goal.with_name(f"{goal.name}.{os.getpid()}.draft")
    try:
        with open(draft, "wb") as file:
            for data in records:
                length = struct.pack("<Q", len(data))
                checksums = (_CHECKSUM.pack(_masked(crc32c(part))) for part in (length, data))
                file.write(b"".join([length, next(checksums), data, next(checksums)]))
                count += 1
            # Otherwise a loss of power could leave the name without the content.
            file.flush()
            os.fsync(file.fileno())
        draft.replace(goal)
    finally:
        draft.unlink(missing_ok=True)
    return count


def _read_record(file: BinaryIO, size: int, place: str, crc32c: Callable[[Any], int]) -> bytes:
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise _cut_short(place, len(head), _HEAD.size)
    length, checksum = _HEAD.unpack(head)
    # Before the length is used: a changed one could ask for any amount of memory.
    if _masked(crc32c(head[:8])) != checksum:
        raise InputError(f"{place}: {_foreign_reason(head)}")
    missing = length + _CHECKSUM.size - (size - file.tell())
    if missing > 0:
        raise _cut_short(place, length + _CHECKSUM.size - missing, length + _CHECKSUM.size)
    data = file.read(length)
    (checksum,) = _CHECKSUM.unpack(file.read(_CHECKSUM.size))
    if _masked(crc32c(data)) != checksum:
        raise InputError(
            f"{place}: the checksum of its {length} bytes must match them, and does not: the file "
            "was changed. Get it again."
        )
    return data


def _cut_short(place: str, got: int, needed: int) -> InputError:
    return InputError(
        f"{place}: a record must be whole; this one needs {needed} more bytes and the file has "
        f"{got}. It was cut short: get it again."
    )


def _foreign_reason(head: bytes) -> str:
    if _LFS_POINTER.startswith(head):
        return "the file is a pointer of Git LFS, not the data. Run git lfs pull."
    if head.startswith(_GZIP):
        return "the file is compressed by gzip. Decompress it: gunzip FILE."
    return (
        "the checksum of its length must match, and does not: the file was changed, or it is no "
        "TFRecord file. Get it again."
    )


def _masked(checksum: int) -> int:
    return (((checksum >> 15) | (checksum << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def _crc32c() -> Callable[[Any], int]:
    try:
        from crc32c import crc32c
    except ImportError as error:
        raise InputError(
            "TFRecord files need the package crc32c, which is not installed. Install it: "
            "pip install 'tts-verifier[train]'."
        ) from error
    checksum: Callable[[Any], int] = crc32c
    return checksum
