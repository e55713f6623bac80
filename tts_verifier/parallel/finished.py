"""Whether a shard that has the mark of a finished one still has what it had then."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tts_verifier.errors import TTSError
from tts_verifier.loading.regular_files import open_regular
from tts_verifier.log.header import read_header
from tts_verifier.log.storage.files import files_in
from tts_verifier.log.storage.tables import TABLE
from tts_verifier.parallel.shard_state import results_of
from tts_verifier.runner.result import PromptResult
from tts_verifier.types import Prompt
from tts_verifier.types.paths import path_inside


def whole_results(
    folder: Path, done: dict[str, Any], prompts: Sequence[Prompt], shard: Mapping[str, str]
) -> list[PromptResult] | None:
    """Returns the results of a shard whose table is unchanged and has every file that it names.

    The files' content is checked when it is loaded. A shard that is not whole goes to a worker,
    which generates again what is missing.

    Args:
        folder: of the shard's last attempt.
        done: its mark.
        prompts: of the shard.
        shard: the run's id and the shard's name, as its header has them.

    Returns:
        None if the shard is not whole.
    """
    try:
        results = results_of(done, prompts)
        header = read_header(folder)
        if header["about"]["recipe"]["shard"] != shard:
            # A worker says what differs.
            return None
        with open_regular(path_inside(folder, TABLE), links=False) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() not in header["table"]:
                return None
            file.seek(0)
            with pq.ParquetFile(file) as table:
                return None if _missing(folder, table) else results
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TTSError):
        return None


def _missing(folder: Path, table: pq.ParquetFile) -> set[str]:
    """Returns the paths of files that the table names and that are not there."""
    names = table.schema_arrow.names
    # States are deleted when no proposal can refer to them any more.
    columns = [name for name in names if name.endswith("_path") and name != "state_path"]
    rows = table.read(columns, use_threads=False)
    named = {path for column in columns for path in rows[column].to_pylist() if path}
    folders = {path.partition("/")[0] for path in named}
    there = {f"{name}/{os.path.basename(p)}" for name in folders for p in files_in(folder, name)}
    return named - there
