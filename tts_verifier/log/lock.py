"""Lets only one process at a time write a run folder.

The kernel holds the lock (`flock`) and releases it when the process ends, for whatever reason. The
lock file also names the holder, for people and for other machines: on a network file system they
may not see the kernel's lock. A lock file that another machine left is therefore respected. One
that a process of this machine left, and that is not locked, is stale.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import RunError

LOCK: Final = "lock"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class FolderLock:
    """Holds a folder from its construction to `release`.

    Args:
        folder: created if it does not exist.
        name: of the lock file.

    Raises:
        RunError: another process holds the folder, or the lock file cannot be written.
    """

    def __init__(self, folder: Path, name: str = LOCK) -> None:
        self.path = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: int | None = self._acquire()
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written: {error.strerror}. Make room or give "
                "permission, or choose another output folder."
            ) from error

    def _acquire(self) -> int:
        while True:
            # A child process that inherited the file would hold the lock after this process ends.
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if not _try_lock(file):
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

    def _sign(self, file: int) -> None:
        try:
            # The file may hold the name of a process that was killed, and that name may be longer.
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(_this_process()).encode(), 0)
            os.fsync(file)
        except OSError:
            self.path.unlink()
            raise

    def _in_use(self, holder: dict[str, Any], action: str) -> RunError:
        process = f"process {holder.get('pid', '?')} of {holder.get('host', '?')}"
        return RunError(
            f"{self.path.parent} is in use: {process}, started {holder.get('started', '?')}, "
            f"{action} it. Wait for it or stop it; if it is surely gone, delete {self.path}."
        )

    def release(self) -> None:
        """Removes the lock file and releases the folder; a second call does nothing."""
        if self._file is None:
            return
        file, self._file = self._file, None
        # The file goes while it is locked: afterwards it may be another process's. On a disk that
        # refuses, the file stays behind; closing it ends the kernel's lock anyway.
        with suppress(OSError):
            if _is_at(file, self.path):
                self.path.unlink()
        os.close(file)


def _try_lock(file: int) -> bool:
    """Locks without waiting. Without `flock` (Windows), only the file's text protects."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _read_holder(file: int) -> dict[str, Any]:
    try:
        # A file that was just created is empty, which is not JSON.
        holder = json.loads(os.pread(file, 4096, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


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
