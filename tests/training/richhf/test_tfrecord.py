"""TFRecord files and Examples, held to hand-made bytes and to the package `tfrecord`."""

from __future__ import annotations

import builtins
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tts_verifier.errors import InputError
from tts_verifier.training.richhf.example import parse_example, serialise_example
from tts_verifier.training.richhf.tfrecord import read_records, write_records

# CRC-32C of "abc", a published test vector, then masked.
ABC_CHECKSUM = (((0x364B3FB7 >> 15) | (0x364B3FB7 << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c_bit_by_bit(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "three.tfrecord"
    assert write_records(path, [b"abc", b"", b"x" * 300]) == 3
    return path


def test_a_file_has_the_documented_bytes(file: Path) -> None:
    length = struct.pack("<Q", 3)
    first = (length + struct.pack("<I", masked(crc32c_bit_by_bit(length))) + b"abc") + struct.pack(
        "<I", ABC_CHECKSUM
    )
    assert file.read_bytes().startswith(first)
    assert crc32c_bit_by_bit(b"123456789") == 0xE3069283


def test_records_come_back(file: Path) -> None:
    assert list(read_records(file)) == [b"abc", b"", b"x" * 300]
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_every_flipped_bit_is_an_error_that_says_where(file: Path) -> None:
    whole = file.read_bytes()
    starts = [0, 19, 35, len(whole)]
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        file.write_bytes(changed)
        record = next(i for i in range(3) if starts[i] <= at < starts[i + 1])
        with pytest.raises(InputError, match=rf"record {record} \(byte {starts[record]}\)"):
            list(read_records(file))


def test_every_truncation_is_an_error_but_between_records(file: Path) -> None:
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        if size in (0, 19, 35):
            assert len(list(read_records(file))) == [0, 19, 35].index(size)
        else:
            with pytest.raises(InputError, match="cut short: get it again"):
                list(read_records(file))


def test_what_was_read_before_a_fault_is_given(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    reader = read_records(file)
    assert [next(reader), next(reader)] == [b"abc", b""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "Run git lfs pull"),
        (b"\x1f\x8b\x08" + bytes(40), "gunzip FILE"),
        (b"This is a text, not records.", "it is no TFRecord file"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.tfrecord").write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_records(tmp_path / "x.tfrecord"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.tfrecord cannot be read: No such file"):
        list(read_records(tmp_path / "x.tfrecord"))


def test_a_writer_that_fails_leaves_the_old_file(file: Path) -> None:
    def records():
        yield b"new"
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        write_records(file, records())
    assert next(read_records(file)) == b"abc"
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_without_the_checksum_package_an_error_says_what_to_install(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "crc32c":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'tts-verifier\[train\]'"):
        list(read_records(file))


# -- Examples ------------------------------------------------------------------------------

FEATURES = {
    "name": [b"a.png"],
    "many": [b"", b"\x00\xff"],
    "floats": np.array([0.5, -2.0], np.float32),
    "integers": np.array([0, 1, -1, 2**62, 300], np.int64),
}


def assert_equal(found, wanted) -> None:
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        if isinstance(values, list):
            assert found[name] == values
        else:
            assert found[name].dtype == values.dtype
            np.testing.assert_array_equal(found[name], values)


def test_an_example_comes_back() -> None:
    assert_equal(parse_example(serialise_example(FEATURES)), FEATURES)
    assert parse_example(b"") == {}


def test_an_example_has_the_documented_bytes() -> None:
    entry = b"\x0a\x01a" + b"\x12\x07" + b"\x0a\x05" + b"\x0a\x03xyz"
    assert serialise_example({"a": [b"xyz"]}) == b"\x0a\x0e" + b"\x0a\x0c" + entry
    entry = b"\x0a\x01a" + b"\x12\x08" + b"\x12\x06" + b"\x0a\x04\x00\x00\x80\x3f"
    assert serialise_example({"a": [1.0]}) == b"\x0a\x0f" + b"\x0a\x0d" + entry


def test_numbers_that_are_not_packed_are_read_too() -> None:
    floats = b"\x0d\x00\x00\x80\x3f" + b"\x0d\x00\x00\x00\x40"
    numbers = b"\x08\x05" + b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
    for kind, content, wanted in ((2, floats, [1.0, 2.0]), (3, numbers, [5, -1])):
        feature = bytes([kind << 3 | 2, len(content)]) + content
        entry = b"\x0a\x01a\x12" + bytes([len(feature)]) + feature
        features = b"\x0a" + bytes([len(entry)]) + entry
        found = parse_example(b"\x0a" + bytes([len(features)]) + features)
        assert found["a"].tolist() == wanted


def test_unknown_fields_are_skipped_and_the_later_entry_counts() -> None:
    data = serialise_example({"a": [b"old"]}) + serialise_example({"a": [b"new"]})
    unknown = b"\x18\x96\x01" + b"\x25\x00\x00\x00\x00" + b"\x29" + bytes(8) + b"\x32\x02hi"
    assert parse_example(unknown + data) == {"a": [b"new"]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x0a\x05abc", "ends 2 bytes too late"),
        (b"\x0b", "unknown kind 3"),
        (b"\x80", "index out of range"),
        (b"\x80" * 11, "longer than ten bytes"),
    ],
)
def test_bytes_that_are_no_example_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=rf"must be a tf.train.Example.*{reason}"):
        parse_example(data)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_an_example_or_an_input_error(data: bytes) -> None:
    with suppress(InputError):
        parse_example(data)


def test_the_package_tfrecord_reads_what_is_written_and_the_other_way(tmp_path: Path) -> None:
    tfrecord = pytest.importorskip("tfrecord")
    ours, theirs = tmp_path / "ours.tfrecord", tmp_path / "theirs.tfrecord"
    write_records(ours, [serialise_example(FEATURES)] * 2)
    kinds = {"name": "byte", "floats": "float", "integers": "int"}
    read = list(tfrecord.tfrecord_loader(str(ours), None, kinds))
    assert len(read) == 2
    assert bytes(read[0]["name"]) == b"a.png"
    assert read[0]["floats"].tolist() == [0.5, -2.0]
    assert read[0]["integers"].tolist() == FEATURES["integers"].tolist()
    writer = tfrecord.TFRecordWriter(str(theirs))
    writer.write({"f": ([0.25, 3.0], "float"), "b": (b"xy", "byte"), "i": ([7, 8], "int")})
    writer.close()
    (record,) = read_records(theirs)
    assert_equal(
        parse_example(record),
        {"f": np.array([0.25, 3], np.float32), "b": [b"xy"], "i": np.array([7, 8], np.int64)},
    )
