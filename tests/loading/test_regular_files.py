"""Regular files are opened, nothing else is; names become text that can be written."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_verifier.errors import readable_name
from tts_verifier.loading.regular_files import open_regular, read_regular


def test_regular_files_and_links_to_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_regular(tmp_path / "a") == read_regular(str(tmp_path / "b")) == b"text"
    with pytest.raises(OSError, match="a regular file is needed, this is a link"):
        open_regular(tmp_path / "b", links=False)
    open_regular(tmp_path / "a", links=False).close()


def test_what_is_no_regular_file_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(os, "open", lambda *arguments: pytest.fail("it was opened"))
    for path, kind in ((tmp_path, "folder"), (tmp_path / "pipe", "pipe"), ("/dev/null", "device")):
        with pytest.raises(OSError, match=f"a regular file is needed, this is a .*{kind}"):
            open_regular(path)
    for path in (tmp_path / "gone", "a\0b"):
        with pytest.raises(FileNotFoundError):
            open_regular(path)


@given(st.text())
def test_names_are_printable(text: str) -> None:
    shown = readable_name(text)
    shown.encode()
    assert shown == text or any("\ud800" <= character <= "\udfff" for character in text)
    assert readable_name("a\udcff") == "a\\xff"
