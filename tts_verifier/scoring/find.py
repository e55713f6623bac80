"""Finds the pictures below folders and behind globs; `images.folders` says which files count."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase

from tts_verifier.errors import InputError, readable_name
from tts_verifier.images import as_list, files_below, picture_files


def find_images(patterns: Sequence[str]) -> list[str]:
    """Finds image files, each once.

    Args:
        patterns: files, globs (`**` included), or folders, which are searched recursively for
            files with an image's suffix.

    Returns:
        Paths in the order of the patterns, and sorted by name within a pattern. A file that is
        named itself is there whatever it is; a file that several links lead to has one path, if
        possible one without a link.

    Raises:
        InputError: a pattern matches nothing, or a folder holds no image.
    """
    files: dict[str, str] = {}
    for pattern in as_list(patterns, "patterns"):
        matches = _matches(pattern)
        if not matches:
            raise InputError(
                f"{readable_name(pattern)} has no image. Name files, folders or globs with some."
            )
        for real, path in matches.items():
            files.setdefault(real, path)
    return list(files.values())


def _matches(pattern: str) -> dict[str, str]:
    """Returns what identifies each file -> its path."""
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        return picture_files(pattern)
    # A name such as `a[1].png` looks like a glob, and may still be a file.
    if os.path.exists(pattern) or not glob.has_magic(pattern):
        return {os.path.abspath(pattern): pattern}
    if "**" in pattern.split("/"):
        paths = _deep_glob(pattern)
    else:
        paths = [path for path in glob.glob(pattern) if not os.path.isdir(path)]
    by_file: dict[str, str] = {}
    for path in sorted(paths):
        by_file.setdefault(os.path.realpath(path), path)
    return by_file


def _deep_glob(pattern: str) -> list[str]:
    # Not `glob`, whose `**` follows links in a circle, a number of times that doubles at each.
    parts = pattern.split("/")
    first = parts.index("**")
    base = "/".join(parts[:first]) or ("/" if pattern.startswith("/") else "")
    found = []
    for root in glob.glob(base) if base else [""]:
        prefix = os.path.join(root, "")
        below = files_below(root or ".")
        names = (path.removeprefix(prefix if root else "./") for path in below.values())
        found += [prefix + name for name in names if _fits(name.split("/"), parts[first:])]
    return found


def _fits(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Returns whether the parts of a path match the parts of a glob."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        # At the end, it stands for any file.
        rest = patterns[1:] or ["*"]
        return any(_fits(names[i:], rest) for i in range(len(names)))
    return bool(names) and fnmatchcase(names[0], patterns[0]) and _fits(names[1:], patterns[1:])
