"""Files of rows that survive a kill and a loss of power: lines of JSON, and files written whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tts_verifier.errors import RunError, readable_name
from tts_verifier.loading.regular_files import read_regular
from tts_verifier.scoring.rows import ScoreRow

_BEGINNING: Final = b'{"image": '
"""Of every line."""


def read_lines(path: Path) -> list[ScoreRow]:
    """Returns the rows of a file, none if it does not exist; removes a line that was cut short.

    Raises:
        RunError: the file holds something else.
        OSError: it cannot be read.
    """
    if not os.path.lexists(path):
        return []
    content = read_regular(path)
    whole = content[: content.rfind(b"\n") + 1]
    # After a loss of power, zeros may stand where the rest was to be.
    cut = content[len(whole) :].rstrip(b"\0")
    try:
        if not _BEGINNING.startswith(cut[: len(_BEGINNING)]):
            raise ValueError(cut[:80])
        rows = [json.loads(line) for line in whole.split(b"\n") if line.strip()]
        # Whatever else a row may lack, this is read of every one.
        _ = [(row["image"], row["key"], row["objective"]) for row in rows]
        # Hashed, which a list cannot be.
        _ = {row["key"] for row in rows}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(
            f"{readable_name(path)} must hold scores of this command, a line of JSON each: "
            f"{error!r}. Give another --output."
        ) from error
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return rows


def append_lines(path: Path, rows: Iterable[ScoreRow]) -> None:
    """Appends rows and flushes them to the disk; raises OSError if that fails."""
    content = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    with open(path, "ab") as file:
        file.write(content)
        # A power cut then costs one batch, not what the system still buffers.
        file.flush()
        os.fsync(file.fileno())


def write_part(path: Path, content: memoryview) -> None:
    """Writes a file that appears whole, and flushes it and its name to the disk."""
    # Readers of Parquet leave hidden files out.
    draft = path.with_name(".draft")
    with open(draft, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flushes the names of a folder's files to the disk."""
    if os.name == "nt":
        # There, a folder cannot be opened.
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
