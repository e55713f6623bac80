"""Files of checkpoint folders that strangers made: nothing outside is read, nothing is too deep."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_verifier.errors import CheckpointError, InputError
from tts_verifier.loading import files
from tts_verifier.loading.files import file_inside, parse_json, read_json
from tts_verifier.loading.headers import indexed_files, tensor_shapes
from tts_verifier.loading.regular_files import output_path, user_path


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "..",
        "..\\x",
        "C:\\x",
        "C:x",
        "a\\..\\..\\x",
        "",
        "a\0b",
        5,
    ],
)
def test_a_name_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"must lie in its folder|must name its files"):
        file_inside(tmp_path, name)


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside.json").write_text("{}")
    (folder / "inside.json").write_text("{}")
    (folder / "good.json").symlink_to("inside.json")
    (folder / "bad.json").symlink_to(tmp_path / "outside.json")
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "up").symlink_to(tmp_path)
    assert read_json(folder, "good.json") == {}
    for name in ("bad.json", "up/outside.json"):
        with pytest.raises(CheckpointError, match=r"is a link to .*Copy the file into the folder"):
            read_json(folder, name)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(folder, "loop.json")


def test_the_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b/snapshots/1234"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "c0ffee").write_text('{"a": 1}')
    (snapshot / "config.json").symlink_to("../../blobs/c0ffee")
    assert read_json(snapshot, "config.json") == {"a": 1}


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="must be a regular file"):
        read_json(tmp_path, "config.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be a JSON object"),
        ("[]", "it is a list"),
        ('{"a": ' + "1" * 10_000 + "}", "must be a JSON object"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested at most 64 deep"),
        ('{"a": ' + "[" * 100_000, "nested at most 64 deep"),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "nested at most 64 deep"),
    ],
)
def test_json_that_is_none_or_too_deep_is_refused(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_json(text, Path("config.json"))


def test_a_file_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 10)
    (tmp_path / "a.json").write_text('{"a":   1}')
    assert read_json(tmp_path, "a.json") == {"a": 1}
    (tmp_path / "a.json").write_text('{"a":    1}')
    with pytest.raises(CheckpointError, match="at most 10 bytes, it has more"):
        read_json(tmp_path, "a.json")


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "a.json").write_bytes(content)
    # A few bytes, such as `{}`, are valid; any other error than this one fails the test.
    with suppress(CheckpointError):
        assert isinstance(read_json(folder, "a.json"), dict)
    with suppress(CheckpointError):
        assert isinstance(tensor_shapes(folder / "a.json"), dict)


@pytest.mark.parametrize(
    "value",
    [None, [], {}, 5, "a", {"a": 1}, {"a": None}, {"a": ["b"]}, {"a": "../b.safetensors"},
     {"a": "/b.safetensors"}, {"a": "b.bin"}, {"a": "b.safetensors\0"}, {"a": "no.safetensors"}],
)  # fmt: skip
def test_an_index_names_files_of_its_folder(tmp_path: Path, value: object) -> None:
    (tmp_path / "x.index.json").write_text(json.dumps({"weight_map": value}))
    with pytest.raises(CheckpointError):
        indexed_files(tmp_path, "x.index.json")


def header(content: object, length: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text


def tensor(start: int, end: int, shape: list[int]) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        header({}, 2**40),
        header({}, 2**63),
        header(b"[" * 10_000),
        header(b'{"a":' * 5_000),
        header({"a": tensor(0, 4, [1]), "b": tensor(0, 4, [1])}) + bytes(4),
        header({"a": tensor(0, 4, [1]), "b": tensor(2, 6, [1])}) + bytes(6),
        header({"a": tensor(0, 4, [2**40])}) + bytes(4),
        header({"a": tensor(0, 4, [2**62, 2**62])}) + bytes(4),
        header({"a": tensor(0, 2**50, [2**48])}) + bytes(4),
        header({"a": tensor(0, 4, [-1])}) + bytes(4),
        header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.safetensors must be a safetensors file"):
        tensor_shapes(path)


def test_a_tilde_is_home_and_variables_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "elsewhere")
    assert user_path("~/a") == tmp_path / "a"
    assert user_path("~") == tmp_path
    assert user_path("$PLACE/~/a") == Path("$PLACE/~/a")
    assert output_path("~/a") == tmp_path / "a"


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://b", Path("abfs://b/c"), "file:///x"])
def test_the_address_of_an_object_store_is_no_output(address):
    with pytest.raises(InputError, match=r"must be on a file system, got the address .* copy"):
        output_path(address)


@pytest.mark.parametrize("path", ["C:/runs", "s3", "runs/a:b/c", "a:b"])
def test_other_colons_are_part_of_an_output(path):
    assert output_path(path) == Path(path)
    with pytest.raises(InputError, match="there is none of that name"):
        user_path("~nobody-has-this-name/a")
    with pytest.raises(InputError, match="must not have the character NUL"):
        user_path("a\0b")
