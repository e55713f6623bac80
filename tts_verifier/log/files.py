"""Files of a run folder: each appears whole or not at all, and is checked when it is read.

A file is written as a draft, flushed to the disk and renamed; `Folder.settle` flushes the
names, so that what is said to be there survives a loss of power.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
from PIL import Image

from tts_verifier.errors import RunError
from tts_verifier.identity import mask_digest
from tts_verifier.types import Heatmap, Mask, State, Stored

DRAFTS: Final = "drafts"
ASIDE: Final = "aside"


class Folder:
    """Writes files below `root`, from any thread."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._unsettled: set[Path] = set()
        self._turn = Lock()

    def write(self, path: str, content: bytes | Callable[[Any], None]) -> None:
        """Makes a file appear whole.

        Args:
            path: relative to the root.
            content: bytes, or what writes them to a binary file.

        Raises:
            RunError: it cannot be written; what was there before is untouched.
        """
        goal = self.root / path
        draft = self.root / DRAFTS / f"{os.getpid()}.{goal.name}"
        try:
            goal.parent.mkdir(parents=True, exist_ok=True)
            draft.parent.mkdir(exist_ok=True)
            with open(draft, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, goal)
        except OSError as error:
            _drop(draft)
            raise _unwritable(goal, error) from error
        with self._turn:
            self._unsettled.add(goal.parent)

    def settle(self) -> None:
        """Flushes the names of all files written since the last call.

        Raises:
            RunError: the disk refuses.
        """
        # Held to the end: who finds nothing left to flush may rely on its having been done.
        with self._turn:
            for folder in self._unsettled:
                try:
                    _flush_names(folder)
                except OSError as error:
                    raise _unwritable(folder, error) from error
            self._unsettled.clear()

    def sweep(self) -> None:
        """Removes the drafts that a killed process left."""
        drafts = self.root / DRAFTS
        for path in drafts.glob("*"):
            _drop(path)
        if drafts.is_dir():
            drafts.rmdir()

    def set_aside(self, path: Path) -> Path:
        """Moves a file to `aside/`, where nothing is overwritten, and returns its new place."""
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


def _flush_names(folder: Path) -> None:
    if os.name == "nt":
        # Windows has no handle of a folder to flush.
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _drop(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def digest_of(content: bytes) -> str:
    """Returns the SHA-256 of a file's bytes as hex digits."""
    return hashlib.sha256(content).hexdigest()


def stored(folder: Path, path: str, digest: str, decode: Callable[[bytes], Any]) -> Stored[Any]:
    """Returns a value that is read from its file, and checked, when looked at."""
    return Stored(partial(_checked, folder, path, digest, decode), path, digest)


def _checked(folder: Path, path: str, digest: str, decode: Callable[[bytes], Any]) -> Any:
    try:
        content = (folder / path).read_bytes()
    except OSError as error:
        raise RunError(
            f"{folder / path} cannot be read: {error.strerror}. The command that made the "
            "run draws it again."
        ) from error
    if digest_of(content) != digest:
        raise RunError(
            f"{folder / path} was changed since the log was written. Move it away; the "
            "command that made the run draws it again."
        )
    return decode(content)


def read_mask(folder: Path, digest: str) -> Mask:
    """Returns a mask of a run folder by its digest.

    Raises:
        RunError: it is gone or changed.
    """
    path = folder / "masks" / f"{digest}.png"
    try:
        mask = Mask.of(np.asarray(Image.open(path)).astype(np.bool_))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}.") from error
    if mask_digest(mask) != digest:
        raise RunError(f"{path} was changed since the log was written.")
    return mask


# -- values as bytes -----------------------------------------------------------------------


def png(image: Image.Image) -> bytes:
    """Returns a PNG file."""
    buffer = io.BytesIO()
    # Level 1 is several times faster than the default and costs about a tenth in size.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def image_of(content: bytes) -> Image.Image:
    """Returns the RGB picture of a PNG file."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def grey(grid: np.ndarray[Any, np.dtype[np.float32]]) -> Image.Image:
    """Returns a map in [0, 1] as 8-bit grey."""
    return Image.fromarray(np.rint(np.clip(grid, 0, 1) * 255).astype(np.uint8))


def rounded(heatmap: Heatmap) -> Heatmap:
    """Returns a map as it comes back from its file."""
    values = np.asarray(grey(heatmap.grid)).astype(np.float32)
    return Heatmap(values / np.float32(255), heatmap.size, heatmap.box)


def heatmap_of(content: bytes, size: tuple[int, int], box: Any) -> Heatmap:
    """Returns the map of a grey PNG file."""
    values = np.asarray(Image.open(io.BytesIO(content))).astype(np.float32)
    return Heatmap(values / np.float32(255), size, box)


def npz(state: State) -> bytes:
    """Returns a NumPy archive."""
    buffer = io.BytesIO()
    np.savez(buffer, **dict(state))  # type: ignore[arg-type]
    return buffer.getvalue()


def state_of(content: bytes) -> State:
    """Returns the arrays of a NumPy archive."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
