"""Whether a shard that has the mark of a finished one still has what it had then."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tts_verifier.errors import TTSError
from tts_verifier.log.header import read_binding
from tts_verifier.log.storage.files import files_in
from tts_verifier.log.storage.tables import TABLE
from tts_verifier.parallel.shard_state import results_of
from tts_verifier.types import Prompt
from tts_verifier.types.paths import path_inside


def is_whole(folder: Path, done: dict[str, Any], prompts: Sequence[Prompt]) -> bool:
    """Returns whether a shard's table is unchanged and every file that it names is there.

    The files' content is checked when it is loaded. A shard that is not whole goes to a worker,
    which generates again what is missing.

    Args:
        folder: of the shard's last attempt.
        done: its mark.
        prompts: of the shard.
    """
    try:
        results_of(done, prompts)
        digests = read_binding(folder).table
        with open(path_inside(folder, TABLE), "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() not in digests:
                return False
        return not _missing(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TTSError):
        return False


def _missing(folder: Path) -> set[str]:
    """Returns the paths of files that the table names and that are not there."""
    schema = pq.read_schema(folder / TABLE)
    # States are deleted when no proposal can refer to them any more.
    columns = [n for n in schema.names if n.endswith("_path") and n != "state_path"]
    table = pq.read_table(folder / TABLE, columns=columns)
    named = {path for column in columns for path in table[column].to_pylist() if path}
    folders = {path.partition("/")[0] for path in named}
    there = {f"{name}/{os.path.basename(p)}" for name in folders for p in files_in(folder, name)}
    return named - there
