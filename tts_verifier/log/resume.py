"""Finds the rows of a run folder for the run that continues it, prompt by prompt.

A row whose files are missing or changed counts as absent, and its image is generated again. The
digest of a file is checked here only if the file is newer than the table that names it; loading
the file always checks it.
"""

from __future__ import annotations

import os
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tts_verifier.errors import RunError, RunWarning
from tts_verifier.log.schema import ColumnNames, names_of, to_trial
from tts_verifier.log.storage.files import Folder, digest_of, read_mask
from tts_verifier.log.storage.tables import (
    TableFile,
    conform,
    foreign_files,
    read_column,
    read_tables,
)
from tts_verifier.types import Job, Trial

_UNREAD: Final = {"prompt_id", "prompt", "category", "parent_id", "seed", "proposal", "chosen"}
"""Columns that the job holds already, or that a continued run does not need."""
_NO_PLACES: Final = np.array([], np.int64)
_BLOCK_ROWS: Final = 256
"""Rows that become Python objects at a time."""
_MOST_WARNINGS: Final = 10


class LoggedPrompt:
    """The rows of one prompt. Belongs to the thread that runs the loop."""

    def __init__(self, log: LoggedTrials, places: NDArray[np.int64]) -> None:
        self._log = log
        # The later of two rows with the same id counts.
        self._rows = {row["trial_id"]: (row, written) for row, written in log.rows_at(places)}

    def trial(self, job: Job) -> Trial | None:
        """Returns the trial of a job, None if it has no row or its files are gone.

        Raises:
            RunError: the row does not describe a trial.
        """
        row, written = self._rows.get(job.id, (None, 0))
        if row is None or not self._log.has_files(row, written):
            return None
        return to_trial(row, self._log.folder, self._log.names, job=job)


class LoggedTrials:
    """Finds the rows of a run folder by prompt, and sets files aside that cannot be used.

    Belongs to the thread that runs the loop. A `RunWarning` names every file set aside.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder.root
        self._files, self._warnings = folder, 0
        for path in foreign_files(folder.root):
            self._set_aside(path, "it is no part of a run")
        tables = list(read_tables(folder.root, self._set_aside))
        self._places = _places_by_prompt(tables)
        self._groups = [(t, number) for t in tables for number in range(len(t.group_sizes))]
        sizes = (size for table in tables for size in table.group_sizes)
        self._starts = list(accumulate(sizes, initial=0))
        # The empty schema is there for a new run: Arrow refuses to unify no schema at all.
        schema = pa.unify_schemas(
            [pa.schema([]), *(table.schema for table in tables)], promote_options="permissive"
        )
        self.names = ColumnNames.of(schema)
        unread = _UNREAD | {f"generator_{name}" for name in names_of(schema, "generator")}
        self._schema = pa.schema([column for column in schema if column.name not in unread])
        files = ["image", "mask", *(f"heatmap_{name}" for name in self.names.heatmap)]
        self._path_columns = {name: f"{name}_path" for name in files}
        # Rows of a prompt lie close together, so a few groups and blocks serve most look-ups.
        self._group = lru_cache(4)(self._read_group)
        self._block = lru_cache(16)(self._read_block)

    def counts(self) -> Counter[str]:
        """Returns the number of rows of each prompt, by prompt id."""
        return Counter({prompt: len(places) for prompt, places in self._places.items()})

    def of_prompt(self, prompt_id: str) -> LoggedPrompt:
        """Returns the rows of a prompt."""
        return LoggedPrompt(self, self._places.get(prompt_id, _NO_PLACES))

    def close(self) -> None:
        """Releases the tables. After that every prompt appears to have no rows."""
        self._places.clear()
        self._groups.clear()
        self._group.cache_clear()
        self._block.cache_clear()

    def rows_at(self, places: NDArray[np.int64]) -> list[tuple[Mapping[str, Any], int]]:
        """Returns the rows at positions in the sequence of all tables.

        Returns:
            Each row by column, and when its table was written, in nanoseconds since the epoch.
        """
        rows: list[tuple[Mapping[str, Any], int]] = []
        for place in places.tolist():
            group = bisect_right(self._starts, place) - 1
            block, offset = divmod(place - self._starts[group], _BLOCK_ROWS)
            rows.append((self._block(group, block)[offset], self._groups[group][0].written))
        return rows

    def has_files(self, row: Mapping[str, Any], written: int) -> bool:
        """Returns whether all files that a row names are there and unchanged.

        Args:
            row: values by column.
            written: when its table was written, in nanoseconds since the epoch.
        """
        columns = [column for column, path in self._path_columns.items() if row[path]]
        # A list, not a generator: every bad file of the row is set aside, not only the first.
        return all([self._has_file(row, column, written) for column in columns])

    def _read_block(self, group: int, block: int) -> list[dict[str, Any]]:
        table = self._group(group).slice(block * _BLOCK_ROWS, _BLOCK_ROWS)
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    def _read_group(self, group: int) -> pa.Table:
        table, number = self._groups[group]
        return conform(table.read_group(number, self._schema.names), self._schema)

    def _has_file(self, row: Mapping[str, Any], column: str, written: int) -> bool:
        # A string, not a Path: building Path objects takes a fifth of the time of a million rows.
        name = f"{self.folder}/{row[self._path_columns[column]]}"
        try:
            if os.stat(name).st_mtime_ns <= written:
                return True
            if column == "mask":
                read_mask(self.folder, row["mask_sha256"])
                return True
            if digest_of(Path(name).read_bytes()) == row[f"{column}_sha256"]:
                return True
        except OSError as error:
            self._warn(f"{name} cannot be read ({error.strerror}). It is generated again.")
            return False
        except RunError:
            # `read_mask` found another mask in the file: set it aside, like any changed file.
            pass
        # The image of a look is its parent's and may have been generated again by now. An image
        # outside the folder belongs to another run. Neither is ours to move.
        foreign = row["kind"] == "look" or row["image_path"].startswith("..")
        if not (foreign and column == "image"):
            self._set_aside(Path(name), "it was changed since the log was written")
        return False

    def _set_aside(self, path: Path, why: str) -> None:
        place = self._files.set_aside(path)
        self._warn(
            f"{path} cannot be used ({why}). It is now {place}; its content is generated again."
        )

    def _warn(self, message: str) -> None:
        self._warnings += 1
        if self._warnings == _MOST_WARNINGS:
            message += " Further warnings of this kind are suppressed."
        if self._warnings <= _MOST_WARNINGS:
            warnings.warn(message, RunWarning, stacklevel=2)


def _places_by_prompt(tables: Sequence[TableFile]) -> dict[str, NDArray[np.int64]]:
    """Returns the positions of each prompt's rows in all tables: eight bytes per row."""
    if not tables:
        # Arrow's dictionary encoding is slow the first time; a new run need not wait for it.
        return {}
    ids = read_column("prompt_id", tables).combine_chunks().dictionary_encode("encode")
    numbers = ids.indices.to_numpy()
    ends = np.cumsum(np.bincount(numbers, minlength=len(ids.dictionary)))
    # The last cut is at the very end, and what follows it is empty.
    places = np.split(np.argsort(numbers, kind="stable"), ends)[:-1]
    return dict(zip(ids.dictionary.to_pylist(), places, strict=True))
