"""Paths below a folder that may come from a stranger, and file names for any text.

The rows, the header and the notes of a run folder name its files. This module alone turns such a
name into a path. It refuses a path that leads out of the folder or through a link.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import RunError
from tts_verifier.loading.files import MAX_JSON_DEPTH, is_too_deep
from tts_verifier.loading.regular_files import open_regular

MOST_BYTES: Final = 2**31
"""The most bytes of an image, map, mask, state or JSON file in a run folder."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .-]{0,63}(?<![. ])", re.ASCII)
# Windows gives these names to devices, with any suffix.
_DEVICE: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_READABLE: Final = 40
"""Characters of a text that a derived file name keeps."""


def stays_inside(path: str) -> bool:
    """Returns whether a relative path names something below its folder, going by its text."""
    if any(part in ("", ".", "..") for part in path.split("/")):
        return False
    # What cannot be printed includes NUL and halves of characters, which no system call takes.
    return path.isprintable() and "\\" not in path and (os.name != "nt" or ":" not in path)


def path_inside(folder: Path, path: str) -> Path:
    """Returns the real path of a file that a run folder names; the file need not exist.

    Args:
        folder: the run folder; it may itself be reached through links.
        path: relative to it, with slashes.

    Raises:
        RunError: the path leads out of the folder, or it or a folder on its way is a link.
    """
    if not stays_inside(path):
        raise RunError(
            f"A run folder may name only files inside it; {folder} names {path!r}. Nothing there "
            "is read or changed."
        )
    place = os.fspath(folder)
    for part in path.split("/"):
        place = f"{place}/{part}"
        try:
            is_link = stat.S_ISLNK(os.lstat(place).st_mode)
        except OSError:
            # What does not exist leads nowhere.
            break
        if is_link:
            raise RunError(
                f"A run folder must hold files, not links; {place} is a link. Put the files in "
                "its place, or delete it."
            )
    return folder / path


def read_inside(folder: Path, path: str, *, most: int = MOST_BYTES) -> bytes:
    """Returns the bytes of a file that a run folder names.

    Args:
        folder: the run folder.
        path: relative to it, with slashes.
        most: the largest size, in bytes.

    Raises:
        RunError: the path leads out of the folder, or names no plain file of a sensible size.
        OSError: the file is missing or cannot be read.
    """
    place = path_inside(folder, path)
    try:
        with open_regular(place, links=False) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= most:
                return file.read()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise RunError(f"{place} cannot be read: {error.strerror}. Move it away.") from error
    raise RunError(f"{place} must have at most {most} bytes, and has {size}. Move it away.")


def read_json_inside(folder: Path, path: str, *, most: int = MOST_BYTES) -> Any:
    """Reads JSON as `read_inside` reads bytes.

    Raises:
        OSError, RunError: see `read_inside`.
        RecursionError, ValueError: it is no JSON, is nested more than `MAX_JSON_DEPTH` deep, or
            holds half a character, which could not be written again.
    """
    # Given bytes, `json` takes other encodings and halves of characters too.
    content = read_inside(folder, path, most=most).decode()
    value = json.loads(content)
    if "\\u" in content:
        json.dumps(value, ensure_ascii=False).encode()
    if is_too_deep([value]):
        raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} levels deep")
    return value


def file_names(texts: Iterable[str]) -> dict[str, str]:
    """Returns a file name, without suffix, for each of some texts: ids, or names of heatmaps.

    A text that every file system takes is its own name. Any other name is a readable part of the
    text and a part of its digest. No two names are equal, not even without regard to case.
    """
    texts = list(dict.fromkeys(texts))
    names = {text: text if _is_plain(text) else _derived(text) for text in texts}
    taken = Counter(name.casefold() for name in names.values())
    return {
        text: name if taken[name.casefold()] == 1 or name != text else _derived(text)
        for text, name in names.items()
    }


def _is_plain(text: str) -> bool:
    return bool(_PLAIN.fullmatch(text)) and not _DEVICE.fullmatch(text)


def _derived(text: str) -> str:
    readable = "".join(c if c.isalnum() else "_" for c in text[:_READABLE]) or "_"
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    # Letters beyond ASCII take up to four bytes each, and a name may have 255.
    return f"{readable.encode('utf-8', 'ignore')[:120].decode('utf-8', 'ignore')}-{digest}"
