"""Lets only one process at a time write a run folder.

The kernel holds the lock (`flock`) and releases it when the process ends, for whatever reason. The
lock file also names the holder, for people and for other machines: on a network file system they
may not see the kernel's lock. A lock file that another machine left is therefore respected. One
that a process of this machine left, and that is not locked, is stale. Where the file system has no
locks, it is stale if that process is gone.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import warnings
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import RunError, RunWarning
from tts_verifier.log.storage.files import REFUSED

LOCK: Final = "lock"
# Neither a link nor a FIFO leads out of the folder or keeps us waiting.
_FLAGS: Final = (
    os.O_RDWR
    | os.O_CREAT
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    # A child process that inherited the file would hold the lock after this process ends.
    | getattr(os, "O_CLOEXEC", 0)
)
_held: Final[set[tuple[int, int]]] = set()
"""Device and inode of the lock files that this process holds."""
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class FolderInUse(RunError):
    """Another process writes the folder, or a process of another machine did."""


class FolderLock:
    """Holds a folder from its construction to `release`.

    Args:
        folder: created if it does not exist.
        name: of the lock file.
        holder: JSON values that the lock file names beside the process.

    Raises:
        FolderInUse: another process holds the folder.
        RunError: the lock file cannot be written.
    """

    def __init__(
        self, folder: Path, name: str = LOCK, *, holder: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self._holder = folder / name, dict(holder or {})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: int | None = self._acquire()
        except (FileExistsError, NotADirectoryError) as error:
            raise RunError(
                f"{folder} must be a folder, and it or what is above it is a file. Move that away, "
                "or choose another output folder."
            ) from error
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written: {error.strerror}. Make room or give "
                "permission, or choose another output folder."
            ) from error

    def _acquire(self) -> int:
        while True:
            if self.path.is_symlink():
                raise self._odd("a link")
            file = os.open(self.path, _FLAGS, 0o644)
            try:
                about = os.fstat(file)
                if not stat.S_ISREG(about.st_mode):
                    raise self._odd("something else")
                # Of two names of one file, the other may be outside the folder.
                if about.st_nlink > 1:
                    raise self._odd("one that has other names too")
                if not self._try_lock(file):
                    raise self._in_use(_read_holder(file), "is writing")
                if not _is_at(file, self.path):
                    # Its holder removed the file after we opened it and before we locked it.
                    os.close(file)
                    continue
                holder = _read_holder(file)
                if holder and not _is_this_machine(holder):
                    raise self._in_use(holder, "on another machine wrote or is writing")
                self._sign(file)
                return file
            except BaseException:
                os.close(file)
                raise

    def _try_lock(self, file: int) -> bool:
        """Locks without waiting. Where there are no locks, only the file's text protects."""
        try:
            import fcntl
        except ImportError:
            return not _is_alive(_read_holder(file), file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            warnings.warn(
                f"The file system of {self.path.parent} has no locks ({error.strerror}). The run "
                "goes on; do not start another that writes this folder.",
                RunWarning,
                stacklevel=2,
            )
            return not _is_alive(_read_holder(file), file)
        return True

    def _sign(self, file: int) -> None:
        try:
            # The file may hold the name of a process that was killed, and that name may be longer.
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            os.write(file, json.dumps({**_this_process(), **self._holder}).encode())
            try:
                os.fsync(file)
            except OSError as error:
                # The folder says so when it flushes its first file.
                if error.errno not in REFUSED:
                    raise
        except OSError:
            self.path.unlink()
            raise
        _held.add(_place_of(file))

    def _in_use(self, holder: dict[str, Any], action: str) -> FolderInUse:
        pid, host, started = (_printable(holder.get(key)) for key in ("pid", "host", "started"))
        return FolderInUse(
            f"{self.path.parent} is in use: process {pid} of {host}, started {started}, "
            f"{action} it. Wait for it or stop it; if it is surely gone, delete {self.path}."
        )

    def _odd(self, found: str) -> RunError:
        return RunError(f"{self.path} must be a file of its own, and is {found}. Delete it.")

    def release(self) -> None:
        """Removes the lock file and releases the folder; a second call does nothing."""
        if self._file is None:
            return
        file, self._file = self._file, None
        # The file goes while it is locked: afterwards it may be another process's. On a disk that
        # refuses, the file stays behind; closing it ends the kernel's lock anyway.
        with suppress(OSError):
            _held.discard(_place_of(file))
            if _is_at(file, self.path):
                self.path.unlink()
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _read_holder(file: int) -> dict[str, Any]:
    try:
        os.lseek(file, 0, os.SEEK_SET)
        # A file that was just created is empty, which is not JSON.
        holder = json.loads(os.read(file, 4096))
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _place_of(file: int) -> tuple[int, int]:
    about = os.fstat(file)
    return about.st_dev, about.st_ino


def _printable(value: object) -> str:
    text = "?" if value is None else str(value)[:80]
    return "".join(c if c.isprintable() else "?" for c in text)


def _is_alive(holder: dict[str, Any], file: int) -> bool:
    """Returns whether the holder is a process of this machine that still runs."""
    pid = holder.get("pid")
    if not isinstance(pid, int) or pid <= 0 or not _is_this_machine(holder):
        return False
    if pid == os.getpid():
        # Else a process of another container, or one before the restart, had our number.
        return _place_of(file) in _held
    if os.name == "nt":
        # There, the question would be a signal.
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _boot_id() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def _is_this_machine(holder: dict[str, Any]) -> bool:
    """Returns whether this kernel, or an earlier one of this host, gave the holder its lock."""
    # Containers of one kernel have different host names, and a restart changes the boot id.
    same_kernel = bool(holder.get("boot")) and holder.get("boot") == _boot_id()
    return same_kernel or holder.get("host") == socket.gethostname()
