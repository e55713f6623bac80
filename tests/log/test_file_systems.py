"""File systems that cannot flush folders, lock files or rename across mounts, as clusters have."""

import errno
import fcntl
import os
import socket
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tts_verifier import BestOfN, run
from tts_verifier.errors import RunError, RunWarning
from tts_verifier.log import read_trials
from tts_verifier.log.lock import FolderLock
from tts_verifier.testing import FakeGenerator, FakeVerifier

UNABLE = ["EINVAL", "ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"]


def refusing(name: str) -> Callable[..., None]:
    number = getattr(errno, name)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def search(folder: Path) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(["a", "b"], FakeGenerator(batch_size=1), FakeVerifier(), BestOfN(2), folder=folder)
    assert len(read_trials(folder)) == 4
    assert not (folder / "lock").exists()
    return caught


@pytest.mark.parametrize("name", UNABLE)
def test_a_file_system_that_cannot_flush_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(name))
    (warning,) = search(tmp_path)
    assert warning.category is RunWarning
    assert "cannot flush files or folders" in str(warning.message)


@pytest.mark.parametrize("name", UNABLE)
def test_a_file_system_without_locks_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(name))
    (warning,) = search(tmp_path)
    assert "has no locks" in str(warning.message)


@pytest.mark.parametrize("name", ["EIO", "ENOSPC", "EDQUOT"])
@pytest.mark.parametrize("call", ["fsync", "flock"])
def test_harm_stays_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, name: str
) -> None:
    monkeypatch.setattr(os if call == "fsync" else fcntl, call, refusing(name))
    with pytest.raises(RunError, match=f"cannot be written: {os.strerror(getattr(errno, name))}"):
        search(tmp_path)


def test_without_locks_a_living_process_still_holds_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing("ENOLCK"))
    with pytest.warns(RunWarning, match="has no locks"):
        first = FolderLock(tmp_path)
    with pytest.warns(RunWarning), pytest.raises(RunError, match="in use"):
        FolderLock(tmp_path)
    first.release()
    child = subprocess.Popen(["true"])
    child.wait()
    for pid in (child.pid, os.getpid(), 10**30, -1, "x"):
        # A process that is gone, or whose number is another's now.
        text = f'{{"pid": {pid if pid != "x" else "[]"}, "host": "{socket.gethostname()}"}}'
        (tmp_path / "lock").write_text(text)
        with pytest.warns(RunWarning):
            FolderLock(tmp_path).release()


def test_a_disk_mounted_in_the_place_of_the_images_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = os.replace

    def across(source: str | Path, goal: str | Path) -> None:
        disks = {"images" in Path(place).parts for place in (source, goal)}
        if len(disks) == 2:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        move(source, goal)

    monkeypatch.setattr(os, "replace", across)
    assert search(tmp_path) == []
    assert {p.suffix for p in (tmp_path / "images").iterdir()} == {".png"}
