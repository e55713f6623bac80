"""Writes files of a run folder: each appears whole or not at all, and nothing outside changes.

A file is written as a draft, flushed to the disk and renamed. `Folder.settle` flushes the entries
of the folders: only then does a file's name survive a loss of power. Every path goes through
`path_inside`: neither a name nor a link leads a write, a move or a deletion out of the folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final

from tts_verifier.errors import RunError, RunWarning
from tts_verifier.identity import mask_digest
from tts_verifier.log.storage.codecs import MASK
from tts_verifier.types import Mask
from tts_verifier.types.paths import path_inside, read_inside, stays_inside

DRAFTS: Final = "drafts"
ASIDE: Final = "aside"
REFUSED: Final = frozenset(
    getattr(errno, name, errno.EINVAL)
    for name in ("EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK", "ENOTTY", "EBADF", "EISDIR")
)
"""Errors by which a file system says that it cannot flush a folder or lock a file at all."""
_NEW: Final = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_DIGEST: Final = re.compile("[0-9a-f]{64}")


class Folder:
    """Writes, moves and deletes files below a root. Threads may share it.

    Args:
        root: created with the first file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._unsettled: set[Path] = set()
        """Folders with entries that are not flushed; the lock guards it."""
        self._lock = Lock()
        self._flushes = True
        """False once the file system has refused to flush; several threads may notice."""

    def write(
        self, path: str, content: bytes | Callable[[Any], None], *, flush: bool = True
    ) -> int:
        """Writes a whole file, or none.

        Args:
            path: relative to the root.
            content: the bytes, or a function that writes them to a binary file. The function is
                called again where `drafts/` turns out to be on another disk.
            flush: whether the file must survive a loss of power, once `settle` has returned.

        Returns:
            When the file system last changed the file, as `changed_at`.

        Raises:
            RunError: the file cannot be written; an older file at this path is untouched.
        """
        goal = self._goal(path)
        # No two threads write a path at once (see `PendingFiles`), and names differ across folders.
        draft = self._goal(f"{DRAFTS}/{os.getpid()}.{goal.name}")
        try:
            try:
                changed = self._write_by_way_of(draft, goal, content, flush)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                # Someone mounted another disk at the goal's folder, say for the images.
                beside = goal.with_name(f".{os.getpid()}.{goal.name}")
                changed = self._write_by_way_of(beside, goal, content, flush)
        except OSError as error:
            raise unwritable(goal, error) from error
        if flush:
            with self._lock:
                self._unsettled.add(goal.parent)
        return changed

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
                    self._flush_entries(folder)
                except OSError as error:
                    raise unwritable(folder, error) from error
            self._unsettled.clear()

    def rename(self, path: str, goal: str) -> None:
        """Moves a file within the folder, over an older one.

        Raises:
            RunError: the disk refuses.
        """
        source, place = self._goal(path), self._goal(goal)
        try:
            self._replace(source, place)
        except OSError as error:
            raise unwritable(place, error) from error
        with self._lock:
            self._unsettled |= {source.parent, place.parent}

    def delete(self, path: str) -> None:
        """Deletes a file, or a link in its place, if there is one.

        Raises:
            RunError: the disk refuses, or the path leads out of the folder.
        """
        place = self._goal(path)
        try:
            place.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(place, error) from error

    def sweep(self) -> None:
        """Removes the drafts of killed processes, as far as the disk allows."""
        for path in files_in(self.root, DRAFTS):
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            (self.root / DRAFTS).rmdir()

    def set_aside(self, path: Path) -> Path:
        """Moves whatever is at a path below the root to `aside/`; returns its new path.

        A link is moved itself, not what it leads to.

        Raises:
            RunError: the disk refuses, or the path leads out of the folder.
        """
        place = self._goal(path.relative_to(self.root).as_posix())
        # Room for a number, which a name of 255 bytes has not.
        name = os.fsdecode(os.fsencode(place.name)[:200])
        count = 0
        while os.path.lexists(goal := self._goal(f"{ASIDE}/{name}.{count}")):
            count += 1
        try:
            goal.parent.mkdir(exist_ok=True)
            shutil.move(place, goal)
        except OSError as error:
            raise unwritable(place, error) from error
        return goal

    def _goal(self, path: str) -> Path:
        """Returns the real path of a file to write, move or delete; it may itself be a link."""
        parent, _, name = path.rpartition("/")
        if parent:
            path_inside(self.root, parent)
        # Only the text of the last part matters: renaming and deleting do not follow a link.
        if name in ("", ".", "..") or (os.name == "nt" and not stays_inside(name)):
            path_inside(self.root, path)
        return self.root / path

    def _write_by_way_of(
        self, draft: Path, goal: Path, content: bytes | Callable[[Any], None], flush: bool
    ) -> int:
        goal.parent.mkdir(parents=True, exist_ok=True)
        draft.parent.mkdir(exist_ok=True)
        draft.unlink(missing_ok=True)
        try:
            with open(os.open(draft, _NEW, 0o666), "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                # Otherwise a loss of power could leave the new name without the content.
                file.flush()
                if flush:
                    self._flush(file.fileno())
            self._replace(draft, goal)
            return changed_at(os.lstat(goal))
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise

    def _replace(self, source: Path, goal: Path) -> None:
        try:
            os.replace(source, goal)
        except OSError:
            if not goal.is_dir():
                raise
            # No file that we write has the name of a folder: it is somebody's mistake, or worse.
            self.set_aside(goal)
            os.replace(source, goal)

    def _flush(self, file: int) -> None:
        try:
            os.fsync(file)
        except OSError as error:
            self._refused(error)

    def _flush_entries(self, folder: Path) -> None:
        if os.name == "nt":
            # On Windows a folder cannot be opened, and so not flushed.
            return
        try:
            file = os.open(folder, os.O_RDONLY)
        except PermissionError as error:
            # One may write into a folder that one may not read.
            self._refused(OSError(errno.ENOTSUP, error.strerror))
            return
        try:
            self._flush(file)
        finally:
            os.close(file)

    def _refused(self, error: OSError) -> None:
        """Raises an error that means harm, and says once of one that means "not here"."""
        if error.errno not in REFUSED:
            raise error
        if self._flushes:
            self._flushes = False
            warnings.warn(
                f"The file system of {self.root} cannot flush files or folders "
                f"({error.strerror}). The run goes on; a loss of power, but no kill, may cost its "
                "last minutes.",
                RunWarning,
                stacklevel=2,
            )


def unwritable(path: Path, error: OSError) -> RunError:
    """Returns the error for a path that the system does not let us write."""
    return RunError(
        f"{path} cannot be written: {error.strerror or error}. Make room or give permission, "
        "or choose another output folder; the same command continues."
    )


def files_in(root: Path, name: str) -> list[Path]:
    """Returns what is in a folder of a run folder, by name; nothing if it does not exist.

    Raises:
        RunError: it is a link, no folder or unreadable.
    """
    folder = path_inside(root, name)
    try:
        return [folder / entry for entry in sorted(os.listdir(folder))]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(
            f"{folder} must be a folder that can be read: {error.strerror}. Move it away."
        ) from error


def changed_at(about: os.stat_result) -> int:
    """Returns when a file was last changed, in nanoseconds since the epoch.

    Nobody can set back the time of the last change of the entry (`ctime`), unlike that of the
    content. On Windows that field is something older, which does not matter here.
    """
    return max(about.st_mtime_ns, about.st_ctime_ns)


def is_plain_file(about: os.stat_result) -> bool:
    """Returns whether a path's own entry is a file: no link, folder, FIFO, socket or device."""
    return stat.S_ISREG(about.st_mode)


def digest_of(content: bytes) -> str:
    """Returns the SHA-256 of a file's bytes as hex digits."""
    return hashlib.sha256(content).hexdigest()


def is_digest(text: object) -> bool:
    """Returns whether a value is a whole SHA-256 as hex digits."""
    return isinstance(text, str) and bool(_DIGEST.fullmatch(text))


def mask_path(digest: str) -> str:
    """Returns the path of a mask's file by its digest, relative to the run folder."""
    return f"masks/{digest}.png"


def path_of_mask(mask: Mask) -> str:
    """Returns the path of a mask's file, relative to the run folder."""
    return mask_path(mask_digest(mask))


def read_mask(folder: Path, digest: str) -> Mask:
    """Returns a mask of a run folder by its digest.

    Raises:
        RunError: its file is missing or was changed, or the digest is none.
    """
    if not is_digest(digest):
        raise RunError(f"{folder} names a mask by {digest!r:.80}, which is no SHA-256.")
    path = folder / mask_path(digest)
    try:
        content = read_inside(folder, mask_path(digest))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}.") from error
    try:
        mask = MASK.decode(content)
    except Exception as error:
        raise RunError(f"{path} cannot be read: {error}.") from error
    if mask_digest(mask) != digest:
        raise RunError(f"{path} was changed since the log was written.")
    return mask
