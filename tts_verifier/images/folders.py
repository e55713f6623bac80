"""Finds the files below a folder, and the pictures among them.

Links are followed, each folder and each file once. Names that begin with a dot are left out, as
are the folders of that kind: they hold copies that editors, notebooks and systems make.
"""

from __future__ import annotations

import os
import warnings
from collections import deque

from tts_verifier.errors import RunWarning, readable_name
from tts_verifier.images.formats import SUFFIXES


def picture_files(folder: str) -> dict[str, str]:
    """Returns the files below a folder that have a picture's suffix, by path: real path -> path."""
    found = files_below(folder).items()
    pictures = [pair for pair in found if os.path.splitext(pair[1])[1].lower() in SUFFIXES]
    return dict(sorted(pictures, key=lambda pair: pair[1]))


def files_below(folder: str) -> dict[str, str]:
    """Returns all files below a folder but hidden ones: real path -> path."""
    files: dict[str, str] = {}
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
        for entry in _shown_entries(place):
            is_link = entry.is_symlink()
            # `entry.is_dir()` raises for a link to itself.
            if os.path.isdir(entry.path) if is_link else entry.is_dir():
                (linked if through_link or is_link else folders).append(entry.path)
            elif is_link:
                links.append(entry.path)
            else:
                files.setdefault(os.path.realpath(entry.path), entry.path)
    for path in links:
        files.setdefault(os.path.realpath(path), path)
    return files


def _shown_entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            shown = [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        warnings.warn(
            f"The folder {readable_name(folder)} cannot be read and is left out: {error.strerror}.",
            RunWarning,
            stacklevel=2,
        )
        return []
    return sorted(shown, key=lambda entry: entry.name)
