"""Finds the pictures below folders and behind globs; `images.folders` says which files count."""

from __future__ import annotations

import glob
import os
from collections.abc import Generator, Iterator, Sequence
from fnmatch import fnmatchcase

from tts_verifier.errors import InputError, readable_name
from tts_verifier.images import as_list, is_picture, walk_files


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
        for real, path in sorted(files_of(pattern), key=lambda pair: pair[1]):
            files.setdefault(real, path)
    return list(files.values())


def files_of(pattern: str) -> Generator[tuple[str, str], None, None]:
    """Yields the files of one pattern as they are found: what identifies a file, and its path.

    See `find_images`. The memory grows with the number of folders, and with the longest listing of
    a folder that a glob goes through. Two paths of a glob may be links to one file.
    """
    found = False
    for pair in _matches(pattern):
        found = True
        yield pair
    if not found:
        raise InputError(
            f"{readable_name(pattern)} has no image. Name files, folders or globs with some."
        )


def _matches(pattern: str) -> Iterator[tuple[str, str]]:
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        yield from (pair for pair in walk_files(pattern) if is_picture(pair[1]))
    # A name such as `a[1].png` looks like a glob, and may still be a file.
    elif os.path.exists(pattern) or not glob.has_magic(pattern):
        yield os.path.abspath(pattern), pattern
    elif "**" in pattern.split("/"):
        yield from _deep_glob(pattern)
    else:
        paths = (path for path in glob.iglob(pattern) if not os.path.isdir(path))
        yield from ((os.path.realpath(path), path) for path in paths)


def _deep_glob(pattern: str) -> Iterator[tuple[str, str]]:
    # Not `glob`, whose `**` follows links in a circle, a number of times that doubles at each.
    parts = pattern.split("/")
    first = parts.index("**")
    base = "/".join(parts[:first]) or ("/" if pattern.startswith("/") else "")
    for root in glob.iglob(base) if base else [""]:
        prefix = os.path.join(root, "")
        for real, path in walk_files(root or "."):
            name = path.removeprefix(prefix if root else "./")
            if _fits(name.split("/"), parts[first:]):
                yield real, prefix + name


def _fits(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Returns whether the parts of a path match the parts of a glob."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        # At the end, it stands for any file.
        rest = patterns[1:] or ["*"]
        return any(_fits(names[i:], rest) for i in range(len(names)))
    return bool(names) and fnmatchcase(names[0], patterns[0]) and _fits(names[1:], patterns[1:])
