"""Opens files that users name: regular files only, so that no command waits for a pipe.

The functions keep no state and may be called from several threads.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Final

from tts_verifier.errors import InputError

_KINDS: Final = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Flags that a system does not have do nothing there.
_READ: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_ADDRESS: Final = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")
"""Of one letter, it is a drive of Windows."""
_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)


def user_path(path: str | os.PathLike[str]) -> Path:
    """Returns a path that a user wrote, with `~` as the home folder.

    Environment variables are not expanded.

    Raises:
        InputError: it is no path or empty, there is no such user, or a path cannot have such
            characters.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"A path must be a text or a Path, got {path!r:.80}.")
    if path == "":
        raise InputError("A path must not be empty; the working folder is '.'.")
    try:
        if "\0" in os.fspath(path):
            raise InputError(f"A path must not have the character NUL, got {os.fspath(path)!r}.")
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"{os.fspath(path)!r} must begin with the home folder of a user, and there is none of "
            "that name. Write the path out."
        ) from error


def output_path(path: str | os.PathLike[str]) -> Path:
    """Returns a path that a user wrote and that is to be written; see `user_path`.

    Raises:
        InputError: also for an address such as `s3://bucket/run`.
    """
    written = user_path(path)
    # As a path, `s3://bucket` is the folder `s3:` of the working folder.
    if _ADDRESS.match(os.fspath(path)):
        raise InputError(
            f"An output must be on a file system, got the address {os.fspath(path)!r}. Give a "
            "local path, and copy what is there to the object store, for a run also while it "
            "goes on: examples/mirror_run.py does that."
        )
    return written


def open_regular(path: str | os.PathLike[str], *, links: bool = True) -> BufferedReader:
    """Opens a regular file, or a link to one, for reading.

    Args:
        path: of the file.
        links: False = refuses a link in place of the file; links among its folders are followed.

    Raises:
        OSError: there is no such file, it cannot be read, or it is a folder, a pipe, a socket or a
            device. These are never opened: that may wait for ever, or change a device.
    """
    name = os.fspath(path)
    try:
        _check_regular(os.stat(name, follow_symlinks=links), name)
        # Should a pipe take the file's place in between, opening it does not wait either.
        file = os.open(name, _READ if links else _READ | _NO_LINK)
    # A name with a NUL is a ValueError.
    except ValueError as error:
        raise FileNotFoundError(errno.ENOENT, str(error), name) from error
    try:
        _check_regular(os.fstat(file), name)
        return open(file, "rb")
    except BaseException:
        os.close(file)
        raise


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a regular file; raises as `open_regular` does."""
    with open_regular(path) as file:
        return file.read()


def _check_regular(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"a regular file is needed, this is {kind}", name)
