"""Reads a run folder, finished or running: all trials, all rows, or the numbers of a few trials."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from tts_verifier.identity import trial_id
from tts_verifier.log.header import binding_of, read_binding
from tts_verifier.log.schema import (
    ColumnNames,
    file_of_row,
    judge_of_row,
    objective_of_row,
    scores_of_row,
    to_trial,
)
from tts_verifier.log.sharded import is_done, shards_of, table_folders
from tts_verifier.log.storage.binding import Binding
from tts_verifier.log.storage.codecs import IMAGE
from tts_verifier.log.storage.tables import (
    TABLE,
    TableFile,
    UnusableTable,
    damage,
    open_table,
    parts_of,
    read_latest_rows,
    read_tables,
    stable,
)
from tts_verifier.types import Pick, Setting, Trial

_MOST_REPEATS: Final = 1000
"""How often a run may have the same text and still be verified again."""


def read_trials(folder: Path) -> list[Trial]:
    """Returns the trials of a run folder in the order in which they were verified.

    Images, heatmaps and states stay in their files. Loading one reads its file and checks the
    SHA-256.

    Raises:
        RunError: a file is damaged.
    """
    return [trial for place in table_folders(folder) for trial in _trials_of(place)]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns the same rows as `read_trials`, as dictionaries by column.

    Paths are relative to the folder of the table, which for a run of shards is a shard's.

    Raises:
        RunError: a file is damaged.
    """
    return [row for place in table_folders(folder) for row in _rows_of(_whole_table(place))]


def read_errors(folder: Path) -> Counter[str]:
    """Returns how many trials have each error, of the first shard that has any, or of the folder.

    Nothing else is read: a run all of whose images failed may have a million of them.

    Raises:
        RunError: a file is damaged.
    """
    for place in table_folders(folder):
        table = stable(place, read_binding, partial(read_latest_rows, place, columns=_errors_only))
        if table is not None:
            counts = table["error"].value_counts().to_pylist()
            if errors := Counter({c["values"]: c["counts"] for c in counts if c["values"]}):
                return errors
    return Counter()


def read_picks(folder: Path, ids: Collection[str]) -> dict[str, Pick]:
    """Returns the objective, scores and image of some trials, without reading the others' text.

    Args:
        folder: the run folder.
        ids: the ids of these trials.

    Returns:
        Picks by trial id; an id without a row is absent.

    Raises:
        RunError: a file is damaged.
    """
    wanted = frozenset(ids)
    picks: dict[str, Pick] = {}
    for place in table_folders(folder):
        picks |= stable(place, read_binding, partial(_picks, place, wanted=wanted))
    return picks


def read_finished(
    folder: Path, header: Mapping[str, Any], ids: Collection[str]
) -> tuple[dict[str, Pick], set[str]]:
    """Reads the finished table of a folder without shards, once.

    Args:
        folder: the run folder.
        header: its header, from `read_header`.
        ids: as in `read_picks`.

    Returns:
        As `read_picks`; and the paths of all files that the table names, but those of states,
        which are deleted when no proposal can refer to them any more.

    Raises:
        RunError: the table is missing, damaged, or not the one that the header names.
    """
    binding = binding_of(folder, header)
    try:
        file = open_table(folder / TABLE, binding.table, binding)
    except (UnusableTable, FileNotFoundError) as error:
        raise damage(folder / TABLE, error) from error
    columns = [n for n in file.schema.names if n.endswith("_path") and n != "state_path"]
    paths = file.read(columns)
    named = {path for name in columns for path in paths[name].drop_null().to_pylist()}
    return _picks_of(file, folder, ids), named - {""}


def repeat_of(trial: Trial, settings: Mapping[str, Setting]) -> int:
    """Returns the `repeat` of a trial's prompt, which the log has in the trial's id only.

    Args:
        trial: from a log.
        settings: of the generator, from the log's header.
    """
    prompt, proposal = trial.prompt.text, trial.proposal
    ids = ((n, trial_id(prompt, proposal, settings, n)) for n in range(_MOST_REPEATS))
    return next((n for n, found in ids if found == trial.id), 0)


def is_running(folder: Path) -> bool:
    """Returns whether a run folder has no finished table, or rows that are not in it yet."""
    if shards := shards_of(folder):
        places = table_folders(folder)
        return len(places) < len(shards) or not all(map(is_done, places))
    return bool(parts_of(folder)) or not os.path.lexists(folder / TABLE)


def _trials_of(folder: Path) -> Iterator[Trial]:
    table = _whole_table(folder)
    if table is not None:
        names = ColumnNames.of(table.schema)
        yield from (to_trial(row, folder, names) for row in _rows_of(table))


def _whole_table(folder: Path) -> pa.Table | None:
    return stable(folder, read_binding, lambda binding: read_latest_rows(folder, binding))


def _errors_only(schema: pa.Schema) -> list[str]:
    return ["trial_id", "error"]


def _picks(folder: Path, binding: Binding, wanted: Collection[str]) -> dict[str, Pick]:
    # File by file and group by group, so that memory does not grow with the run. Later rows of an
    # id replace earlier ones, as in `read_latest_rows`.
    picks: dict[str, Pick] = {}
    for file in read_tables(folder, binding):
        picks |= _picks_of(file, folder, wanted)
    return picks


def _picks_of(file: TableFile, folder: Path, wanted: Collection[str]) -> dict[str, Pick]:
    if not wanted:
        return {}
    picks = {}
    names = ColumnNames.of(file.schema)
    columns = ["trial_id", "objective", "detail", "image_path", "image_sha256", "error"]
    columns += [*names.score, *(f"judge_{name}" for name in names.judge)]
    for number in range(len(file.group_sizes)):
        table = file.read_group(number, columns)
        # A set of Python: Arrow's `is_in` would hash the ids of all shards for each of them.
        found = pa.array([id_ in wanted for id_ in table["trial_id"].to_pylist()], pa.bool_())
        for row in table.filter(found).to_pylist():
            picks[row["trial_id"]] = Pick(
                id=row["trial_id"],
                objective=objective_of_row(row),
                scores=scores_of_row(row, names),
                judge=judge_of_row(row, names),
                image=file_of_row(row, "image", folder, IMAGE),
                error=row["error"] or "",
            )
    return picks


def _rows_of(table: pa.Table | None) -> Iterator[dict[str, Any]]:
    if table is None:
        return
    # As Python objects, all rows at once would take many times the memory of the table.
    for start in range(0, len(table), 4096):
        yield from table.slice(start, 4096).to_pylist()
