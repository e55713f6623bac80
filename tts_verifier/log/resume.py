"""Finds the rows of a run folder for the run that continues it, prompt by prompt.

A row whose files are missing or changed counts as absent, and its image is generated again. The
digest of a file is checked here only if its content may be another than the one that was logged:
if the file has changed since it was written, or so soon after that its times do not show it.
Loading the file always checks it. `SCHEMA.md` states the rule.
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
from tts_verifier.log.schema import ColumnNames, to_trial
from tts_verifier.log.storage.binding import TICK, Binding
from tts_verifier.log.storage.columns import names_of
from tts_verifier.log.storage.files import (
    Folder,
    changed_at,
    digest_of,
    is_plain_file,
    read_mask,
)
from tts_verifier.log.storage.tables import (
    TableFile,
    common_schema,
    conform,
    damage,
    foreign_files,
    places_by_prompt,
    read_tables,
)
from tts_verifier.types import Job, Trial
from tts_verifier.types.paths import path_inside, read_inside, stays_inside

_UNREAD: Final = {"prompt_id", "prompt", "category", "parent_id", "seed", "proposal", "chosen"}
"""Columns that the job holds already, or that a continued run does not need."""
_NO_PLACES: Final = np.array([], np.int64)
_BLOCK_ROWS: Final = 256
"""Rows that become Python objects at a time."""
_MOST_WARNINGS: Final = 10
_FOLDER_OF: Final = {"image": "images", "heatmap": "heatmaps", "mask": "masks"}
"""The folder of the files that a kind of column names."""


class LoggedPrompt:
    """The rows of one prompt. Belongs to the thread that runs the loop."""

    def __init__(self, log: LoggedTrials, places: NDArray[np.int64]) -> None:
        self._log = log
        # The later of two rows with the same id counts.
        self._rows = {row["trial_id"]: (row, trusted) for row, trusted in log.rows_at(places)}

    def __contains__(self, trial_id: object) -> bool:
        return trial_id in self._rows

    def trial(self, job: Job) -> Trial | None:
        """Returns the trial of a job, None if it has no usable row or its files are gone."""
        row, trusted = self._rows.get(job.id, (None, 0))
        if row is None or not self._log.has_files(row, trusted):
            return None
        try:
            return to_trial(row, self._log.folder, self._log.names, job=job)
        except RunError as error:
            self._log.warn(f"{error} It is generated again.")
            return None


class LoggedTrials:
    """Finds the rows of a run folder by prompt, and sets files aside that cannot be used.

    Belongs to the thread that runs the loop. A `RunWarning` names every file set aside.

    Args:
        folder: the run folder.
        binding: from its header.

    Raises:
        RunError: a table cannot be read.
    """

    def __init__(self, folder: Folder, binding: Binding) -> None:
        self.folder = folder.root
        self._files, self._warnings = folder, 0
        self._plain_folders: set[str] = set()
        """Folders of files, relative to the run folder, that are no links."""
        for path in foreign_files(folder.root):
            self.set_aside(path, "it is no part of a run")
        try:
            tables = list(read_tables(folder.root, binding, self.set_aside))
        except FileNotFoundError as error:
            raise damage(folder.root, f"{error.filename} is gone") from error
        self._places = places_by_prompt(tables)
        self._groups = [(t, number) for t in tables for number in range(len(t.group_sizes))]
        self._trusted = _trusted_times(tables)
        sizes = (size for table in tables for size in table.group_sizes)
        self._starts = list(accumulate(sizes, initial=0))
        schema = common_schema(folder.root, tables)
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
            Each row by column, and the time up to which a change of its files is known to be
            theirs from before they were logged, in nanoseconds since the epoch.
        """
        rows: list[tuple[Mapping[str, Any], int]] = []
        for place in places.tolist():
            group = bisect_right(self._starts, place) - 1
            block, offset = divmod(place - self._starts[group], _BLOCK_ROWS)
            rows.append((self._block(group, block)[offset], int(self._trusted[place])))
        return rows

    def has_files(self, row: Mapping[str, Any], trusted: int) -> bool:
        """Returns whether all files that a row names are there and unchanged.

        Args:
            row: values by column.
            trusted: a file that was not changed after this time need not be read.
        """
        columns = [column for column, path in self._path_columns.items() if row[path]]
        # A list, not a generator: every bad file of the row is set aside, not only the first.
        return all([self._has_file(row, column, trusted) for column in columns])

    def _read_block(self, group: int, block: int) -> list[dict[str, Any]]:
        table = self._group(group).slice(block * _BLOCK_ROWS, _BLOCK_ROWS)
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    def _read_group(self, group: int) -> pa.Table:
        table, number = self._groups[group]
        return conform(table.read_group(number, self._schema.names), self._schema)

    def _has_file(self, row: Mapping[str, Any], column: str, trusted: int) -> bool:
        path = row[self._path_columns[column]]
        # A string, not a Path: building Path objects takes a fifth of the time of a million rows.
        name = f"{self.folder}/{path}"
        if not self._is_own(path, column):
            self.warn(f"{self.folder} names {path!r} as its {column}. It is generated again.")
            return False
        why = "it was changed since the log was written"
        try:
            about = os.lstat(name)
            if not is_plain_file(about):
                why = "it is no plain file"
            elif changed_at(about) <= trusted:
                return True
            elif column == "mask":
                read_mask(self.folder, row["mask_sha256"])
                # The mask is found by its digest, wherever the row may say that it is.
                return True
            elif digest_of(read_inside(self.folder, path)) == row[f"{column}_sha256"]:
                return True
        except OSError as error:
            self.warn(f"{name} cannot be read ({error.strerror}). It is generated again.")
            return False
        except RunError:
            # `read_mask` found another mask in the file: set it aside, like any changed file.
            pass
        # The image of a look is its parent's and may have been generated again by now.
        if not (row["kind"] in ("look", "compare", "rewrite") and column == "image"):
            self.set_aside(Path(name), why)
        return False

    def _is_own(self, path: str, column: str) -> bool:
        """Returns whether a path is in the folder's part for such files, and not behind a link."""
        parent = path.rpartition("/")[0]
        if not stays_inside(path) or parent.partition("/")[0] != _FOLDER_OF[column.split("_")[0]]:
            return False
        if parent not in self._plain_folders:
            # Raises an error that names the link.
            path_inside(self.folder, parent)
            self._plain_folders.add(parent)
        return True

    def set_aside(self, path: Path, why: str) -> None:
        """Moves a file that cannot be used to `aside/` and says so."""
        place = self._files.set_aside(path)
        self.warn(
            f"{path} cannot be used ({why}). It is now {place}; its content is generated again."
        )

    def warn(self, message: str) -> None:
        """Warns of something that is generated again; the first few times only."""
        self._warnings += 1
        if self._warnings == _MOST_WARNINGS:
            message += " Further warnings of this kind are suppressed."
        if self._warnings <= _MOST_WARNINGS:
            warnings.warn(message, RunWarning, stacklevel=2)


def _trusted_times(tables: Sequence[TableFile]) -> NDArray[np.int64]:
    """Returns for every row of all tables up to when changes of its files are trusted.

    A file that was written just before its table could have been changed just after it at the
    same reading of the clock: nothing is trusted then.
    """
    times = [np.where(t.written + TICK <= t.changed, t.written, 0) for t in tables]
    return np.concatenate([np.empty(0, np.int64), *times])
