"""Reads a run folder, finished or running: its trials, its rows, or what counts of a few."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tts_verifier.choice.objective import Pick
from tts_verifier.log.schema import (
    ColumnNames,
    file_of_row,
    judge_of_row,
    objective_of_row,
    scores_of_row,
    to_trial,
)
from tts_verifier.log.storage.codecs import IMAGE
from tts_verifier.log.storage.tables import TABLE, parts_of, read_table, read_tables
from tts_verifier.types import Trial


def read_trials(folder: Path) -> list[Trial]:
    """Returns the trials of a run folder in the order in which they were verified.

    Images, heatmaps and states are read from their files, and checked against their SHA-256,
    when they are loaded.

    Raises:
        RunError: a file is damaged.
    """
    table = read_table(folder)
    if table is None:
        return []
    names = ColumnNames.of(table.schema)
    return [to_trial(row, folder, names) for row in _rows_of(table)]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of `read_trials` as they are written, by column.

    Raises:
        RunError: a file is damaged.
    """
    table = read_table(folder)
    return [] if table is None else list(_rows_of(table))


def read_picks(folder: Path, ids: Collection[str]) -> dict[str, Pick]:
    """Returns what counts of some trials, by id, without reading the rest of the run folder.

    Raises:
        RunError: a file is damaged.
    """
    wanted, picks = pa.array(ids, pa.string()), {}
    for file in read_tables(folder):
        names = ColumnNames.of(file.schema)
        columns = ["trial_id", "objective", "detail", "image_path", "image_sha256", "error"]
        columns += [*names.score, *(f"judge_{name}" for name in names.judge)]
        for number in range(len(file.group_sizes)):
            table = file.read_group(number, columns)
            for row in table.filter(pc.is_in(table["trial_id"], wanted)).to_pylist():
                picks[row["trial_id"]] = Pick(
                    id=row["trial_id"],
                    objective=objective_of_row(row),
                    scores=scores_of_row(row, names),
                    judge=judge_of_row(row, names),
                    image=file_of_row(row, "image", folder, IMAGE),
                    error=row["error"] or "",
                )
    return picks


def is_running(folder: Path) -> bool:
    """Returns whether a run folder has no finished table, or rows that are not in it yet."""
    return bool(parts_of(folder)) or not (folder / TABLE).exists()


def _rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    # One slice at a time: Python objects of all rows at once would take many times the table.
    for start in range(0, len(table), 4096):
        yield from table.slice(start, 4096).to_pylist()
