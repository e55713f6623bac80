"""One process at a time writes a run folder.

The lock is the kernel's (`flock`), which lets go when its holder dies, however it dies. The
file also says who holds it, for people and for other machines, to which the kernel's word
does not reach: a lock left by another machine is refused, one left on this machine is stale.
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

NAME: Final = "lock"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class FolderLock:
    """Holds a folder from its making to `release`.

    Raises:
        RunError: another process holds the folder, or the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
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
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if not _locked(file):
                    raise self._held(_read(file), "is writing")
                if not _is_at(file, self.path):
                    # The holder removed it between our opening and our locking it.
                    os.close(file)
                    continue
                left = _read(file)
                if left and not _from_here(left):
                    raise self._held(left, "on another machine wrote or is writing")
                self._sign(file)
                return file
            except BaseException:
                os.close(file)
                raise

    def _sign(self, file: int) -> None:
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(_me()).encode(), 0)
            os.fsync(file)
        except OSError:
            self.path.unlink()
            raise

    def _held(self, by: dict[str, Any], what: str) -> RunError:
        who = f"process {by.get('pid', '?')} of {by.get('host', '?')}"
        return RunError(
            f"{self.path.parent} is in use: {who}, started {by.get('started', '?')}, {what} "
            f"it. Wait for it or stop it; if it is surely gone, delete {self.path}."
        )

    def release(self) -> None:
        """Removes the file and lets the folder go; a second call does nothing."""
        if self._file is None:
            return
        file, self._file = self._file, None
        # On a disk that refuses, the file stays behind; closing it ends the kernel's lock anyway.
        with suppress(OSError):
            if _is_at(file, self.path):
                self.path.unlink()
        os.close(file)


def _locked(file: int) -> bool:
    """Locks without waiting; where there is no `flock`, only the file's words protect."""
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


def _read(file: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(file, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _me() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": _boot(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def _from_here(left: dict[str, Any]) -> bool:
    """True when the kernel's lock spoke for the one who left this, or its machine restarted."""
    same_kernel = bool(left.get("boot")) and left.get("boot") == _boot()
    return same_kernel or left.get("host") == socket.gethostname()
