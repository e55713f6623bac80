"""Finds the files below a folder, and the pictures among them.

Links are followed, each folder and each file once. Names that begin with a dot are left out, as
are the folders of that kind: they hold copies that editors, notebooks and systems make.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator

from tts_verifier.errors import RunWarning, readable_name
from tts_verifier.images.formats import SUFFIXES


def picture_files(folder: str) -> dict[str, str]:
    """Returns the files below a folder that have a picture's suffix, by path: real path -> path."""
    pictures = [pair for pair in walk_files(folder) if is_picture(pair[1])]
    return dict(sorted(pictures, key=lambda pair: pair[1]))


def is_picture(name: str) -> bool:
    """Returns whether a name has a picture's suffix."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def walk_files(folder: str) -> Iterator[tuple[str, str]]:
    """Yields all files below a folder but hidden ones, each once: its real path and its path.

    They come folder by folder, in the order of the file system, and links last. The memory grows
    with the folders and the links, not with the files.
    """
    links: list[str] = []
    seen: set[str] = set()
    # Folders behind links wait until the others are done, so that paths without links are found.
    folders, linked = deque([folder]), deque[str]()
    while folders or linked:
        through_link = not folders
        place = (folders or linked).popleft()
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        inside: list[str] = []
        inside_links: list[str] = []
        for entry in _shown_entries(place):
            is_link = entry.is_symlink()
            # `entry.is_dir()` raises for a link to itself.
            if os.path.isdir(entry.path) if is_link else entry.is_dir():
                (inside_links if through_link or is_link else inside).append(entry.path)
            elif is_link:
                links.append(entry.path)
            else:
                yield os.path.join(real, entry.name), entry.path
        folders.extend(sorted(inside))
        linked.extend(sorted(inside_links))
    linked_files: set[str] = set()
    for path in sorted(links):
        real = os.path.realpath(path)
        if real not in linked_files and not _was_walked(real, seen):
            linked_files.add(real)
            yield real, path


def _was_walked(file: str, folders: set[str]) -> bool:
    """Returns whether a file lies in one of the folders that were walked, and is shown there."""
    folder, name = os.path.split(file)
    shown = not name.startswith(".") and os.path.lexists(file) and not os.path.islink(file)
    return folder in folders and shown


def _shown_entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            yield from (entry for entry in found if not entry.name.startswith("."))
    except OSError as error:
        warnings.warn(
            f"The folder {readable_name(folder)} cannot be read and is left out: {error.strerror}.",
            RunWarning,
            stacklevel=2,
        )
