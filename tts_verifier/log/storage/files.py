"""Writes files of a run folder: each appears whole or not at all.

A file is written as a draft, flushed to the disk and renamed. `Folder.settle` flushes the entries
of the folders: only then does a file's name survive a loss of power.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final

from tts_verifier.errors import InputError, RunError
from tts_verifier.identity import mask_digest
from tts_verifier.log.storage.codecs import MASK
from tts_verifier.types import Mask

DRAFTS: Final = "drafts"
ASIDE: Final = "aside"


class Folder:
    """Writes files below a root. Threads may share it.

    Args:
        root: created with the first file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._unsettled: set[Path] = set()
        """Folders with entries that are not flushed; the lock guards it."""
        self._lock = Lock()

    def write(self, path: str, content: bytes | Callable[[Any], None]) -> None:
        """Writes a whole file, or none.

        Args:
            path: relative to the root.
            content: the bytes, or a function that writes them to a binary file.

        Raises:
            RunError: the file cannot be written; an older file at this path is untouched.
        """
        goal = self.root / path
        # No two threads write a path at once (see `PendingFiles`), and names differ across folders.
        draft = self.root / DRAFTS / f"{os.getpid()}.{goal.name}"
        try:
            goal.parent.mkdir(parents=True, exist_ok=True)
            draft.parent.mkdir(exist_ok=True)
            with open(draft, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                # Otherwise a loss of power could leave the new name without the content.
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, goal)
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            raise _unwritable(goal, error) from error
        with self._lock:
            self._unsettled.add(goal.parent)

    def settle(self) -> None:
        """Flushes the folder entries of all files written since the last call.

        Raises:
            RunError: the disk refuses.
        """
        # Several threads call this. The lock is held until everything is flushed, so a caller that
        # finds nothing to flush knows that the other one has finished.
        with self._lock:
            for folder in self._unsettled:
                try:
                    _flush_entries(folder)
                except OSError as error:
                    raise _unwritable(folder, error) from error
            self._unsettled.clear()

    def sweep(self) -> None:
        """Removes the drafts of killed processes, as far as the disk allows."""
        drafts = self.root / DRAFTS
        for path in drafts.glob("*"):
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            drafts.rmdir()

    def set_aside(self, path: Path) -> Path:
        """Moves a file to `aside/` under a free name; returns its new path."""
        (self.root / ASIDE).mkdir(exist_ok=True)
        count = 0
        while (goal := self.root / ASIDE / f"{path.name}.{count}").exists():
            count += 1
        os.replace(path, goal)
        return goal


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path} cannot be written: {error.strerror or error}. Make room or give permission, "
        "or choose another output folder; the same command continues."
    )


def _flush_entries(folder: Path) -> None:
    if os.name == "nt":
        # On Windows a folder cannot be opened, and so not flushed.
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def digest_of(content: bytes) -> str:
    """Returns the SHA-256 of a file's bytes as hex digits."""
    return hashlib.sha256(content).hexdigest()


def mask_path(digest: str) -> str:
    """Returns the path of a mask's file by its digest, relative to the run folder."""
    return f"masks/{digest}.png"


def read_mask(folder: Path, digest: str) -> Mask:
    """Returns a mask of a run folder by its digest.

    Raises:
        RunError: its file is missing or was changed.
    """
    path = folder / mask_path(digest)
    try:
        mask = MASK.decode(path.read_bytes())
    except (OSError, InputError) as error:
        raise RunError(f"{path} cannot be read: {error}.") from error
    if mask_digest(mask) != digest:
        raise RunError(f"{path} was changed since the log was written.")
    return mask
