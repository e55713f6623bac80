"""Reads the files of checkpoint folders that strangers made.

A file of a folder is a regular file inside it. A link may lead out of the folder only into the
store of the hub's cache that the folder belongs to. JSON has a size and a depth that cannot
exhaust the memory or the stack.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import CheckpointError
from tts_verifier.loading.regular_files import open_regular

MAX_JSON_BYTES: Final = 64 * 2**20
"""A larger JSON file is refused; the largest tokenizers take 35 MB."""
MAX_JSON_DEPTH: Final = 64
"""A file that is nested more deeply is refused."""
_NESTED: Final = frozenset({dict, list})


def file_inside(folder: Path, name: str) -> Path:
    """Returns the path of a file of a checkpoint folder; the file may be absent.

    Args:
        folder: of the checkpoint.
        name: relative to the folder, as its files name it.

    Raises:
        CheckpointError: the name or a link leads out of the folder, or it is no regular file.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise CheckpointError(f"{folder} must name its files with text, got {name!r}.")
    path = folder / name
    # Both separators, whatever the system: the folder may be of another one.
    parts = name.replace("\\", "/").split("/")
    if os.path.isabs(name) or ".." in parts or ":" in parts[0]:
        raise CheckpointError(
            f"A checkpoint must lie in its folder, but {folder} names {name!r}, which is outside."
        )
    try:
        resolved = path.resolve()
        found = os.stat(path).st_mode
    except FileNotFoundError:
        return path
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None
    home = folder.resolve()
    # The hub's cache: snapshots/REVISION has links to ../../blobs.
    cached = home.parent.name == "snapshots" and resolved.is_relative_to(home.parents[1] / "blobs")
    if not resolved.is_relative_to(home) and not cached:
        raise CheckpointError(
            f"A checkpoint must lie in its folder, but {path} is a link to {resolved}. Copy the "
            "file into the folder."
        )
    if not stat.S_ISREG(found):
        raise CheckpointError(f"{path} must be a regular file.")
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Reads a JSON object of a checkpoint folder.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is outside the folder, too large, nested too deeply, or no JSON
            object.
    """
    return parse_json(read_text(folder, name), folder / name)


def read_text(folder: Path, name: str) -> str:
    """Reads a text file of a checkpoint folder, of at most `MAX_JSON_BYTES`; see `read_json`."""
    path = file_inside(folder, name)
    try:
        with open_regular(path) as file:
            content = file.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} must have at most {MAX_JSON_BYTES} bytes, it has more.")
        return content.decode("utf-8")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} must be a JSON object: {error}.") from None


def parse_json(text: str, path: Path) -> dict[str, Any]:
    """Parses a JSON object; see `read_json`."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path} must be a JSON object: {error}.") from None
    except RecursionError:
        raise _too_deep(path) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must be a JSON object, it is a {type(value).__name__}.")
    if is_too_deep([value]):
        raise _too_deep(path)
    return value


def is_too_deep(values: list[Any]) -> bool:
    """Returns whether any of some JSON values is nested more than `MAX_JSON_DEPTH` deep."""
    level = [value for value in values if type(value) in _NESTED]
    for _ in range(MAX_JSON_DEPTH):
        if not level:
            return False
        # JSON is read as these types exactly, and `isinstance` would take twice the time.
        below = (item.values() if type(item) is dict else item for item in level)
        level = [v for values in below for v in values if type(v) in _NESTED]
    return bool(level)


def _too_deep(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} must be nested at most {MAX_JSON_DEPTH} deep, it is deeper.")
