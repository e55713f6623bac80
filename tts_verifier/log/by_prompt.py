"""Reads a large run folder prompt by prompt, or only what its numbers need.

Rows stay in a compact table, and trials are made of a few prompts at a time: as Python objects,
all trials of a large run at once would take ten times the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tts_verifier.errors import RunError
from tts_verifier.identity import proposal_from_json
from tts_verifier.log.header import read_binding
from tts_verifier.log.schema import (
    NO_TRIAL,
    ColumnNames,
    check_values,
    judge_of_row,
    objective_of_row,
    to_trial,
)
from tts_verifier.log.sharded import table_folders
from tts_verifier.log.storage.columns import names_of
from tts_verifier.log.storage.tables import (
    common_schema,
    conform,
    places_by_prompt,
    read_latest_rows,
    read_tables,
    stable,
)
from tts_verifier.types import Cost, Mask, Prompt, Trial

_ROWS_AT_ONCE: Final = 1024
"""So many rows, or those of one prompt, are Python objects at once."""
_GROUPS_AT_ONCE: Final = 8
"""Groups of rows of the tables that stay in memory."""
_COSTS: Final = tuple(Cost.__dataclass_fields__)
_OUTLINE: Final = ("trial_id", "prompt_id", "prompt", "round", "proposal", "progress", "objective")
_NO_MASK: Final = Mask(0, 0, b"")


class LoggedPrompts:
    """The trials of a run folder, prompt by prompt, in the order of their first rows.

    Of a run of shards, one shard is open at a time. Not for sharing between threads.

    Args:
        folder: the run folder.

    Raises:
        RunError: a file is damaged, or is not a table of trials.
    """

    def __init__(self, folder: Path) -> None:
        self._folders = table_folders(folder)
        self.sizes: list[int] = []
        """The number of trials of each prompt."""
        self._open: _TablePrompts | None = None
        heatmaps, judge = dict[str, None](), dict[str, None]()
        for place in self._folders:
            prompts = self._open = _TablePrompts(place)
            self.sizes += prompts.sizes
            heatmaps |= dict.fromkeys(prompts.names.heatmap)
            judge |= dict.fromkeys(prompts.names.judge)
        self.heatmaps: Sequence[str] = list(heatmaps)
        """Names of heatmaps that at least one trial may have."""
        self.judge: Sequence[str] = list(judge)
        """Names of the held-out judge's scores."""

    def __iter__(self) -> Iterator[list[Trial]]:
        """Yields all trials of each prompt, in the order of the log.

        Raises:
            RunError: a row is not a trial.
        """
        if len(self._folders) == 1 and self._open is not None:
            yield from self._open
            return
        left = len(self.sizes)
        for place in self._folders:
            # Prompts that a running shard has got meanwhile are left out.
            for trials in islice(_TablePrompts(place), left):
                left -= 1
                yield trials


class _TablePrompts:
    """The prompts of one folder with tables."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        tables = stable(folder, read_binding, lambda b: list(read_tables(folder, b)))
        self._groups = [(t, number) for t in tables for number in range(len(t.group_sizes))]
        sizes = (size for table in tables for size in table.group_sizes)
        self._starts = np.array(list(accumulate(sizes, initial=0)))
        self._schema = common_schema(folder, tables)
        self.names = ColumnNames.of(self._schema)
        self._rows = list(places_by_prompt(tables, last_only=True).values())
        # Rows of a prompt lie close together, so that a few groups serve most prompts.
        self._group = lru_cache(_GROUPS_AT_ONCE)(self._read_group)

    @property
    def sizes(self) -> list[int]:
        return [len(rows) for rows in self._rows]

    def __iter__(self) -> Iterator[list[Trial]]:
        start = 0
        while start < len(self._rows):
            stop, count = start + 1, len(self._rows[start])
            while stop < len(self._rows) and count + len(self._rows[stop]) <= _ROWS_AT_ONCE:
                count += len(self._rows[stop])
                stop += 1
            trials = iter(self._trials(np.concatenate(self._rows[start:stop])))
            for rows in self._rows[start:stop]:
                yield [next(trials) for _ in rows]
            start = stop

    def _trials(self, rows: NDArray[np.int64]) -> Iterator[Trial]:
        """Returns the trials of rows, by their numbers in the sequence of all tables."""
        order = np.argsort(rows)
        groups = np.searchsorted(self._starts, rows[order], "right") - 1
        # Group after group, and then into the order of the prompts.
        parts = []
        for group in np.unique(groups):
            places = rows[order][groups == group] - self._starts[group]
            parts.append(self._group(int(group)).take(pa.array(places)))
        sought = np.empty(len(rows), np.int64)
        sought[order] = np.arange(len(rows))
        found = pa.concat_tables(parts).to_pylist()
        for place in sought.tolist():
            yield to_trial(found[place], self._folder, self.names)

    def _read_group(self, group: int) -> pa.Table:
        table, number = self._groups[group]
        return conform(table.read_group(number), self._schema)


def read_outlines(folder: Path) -> list[Trial]:
    """Returns the trials of a run folder without verdicts and files, for what needs numbers only.

    A mask is empty, its file is not read; everything else is as `read_trials` gives it.

    Raises:
        RunError: a file is damaged, or a row is not a trial.
    """
    return [trial for place in table_folders(folder) for trial in _outlines_in(place)]


def _outlines_in(folder: Path) -> list[Trial]:
    table = stable(folder, read_binding, lambda b: read_latest_rows(folder, b, _outline_columns))
    if table is None:
        return []
    try:
        return list(_outlines(table))
    except NO_TRIAL as error:
        raise RunError(f"{folder} holds a row that is not a trial: {error!r:.300}.") from error


def _outline_columns(schema: pa.Schema) -> list[str]:
    judge = [f"judge_{name}" for name in names_of(schema, "judge")]
    return [*_OUTLINE, "category", "error", *_COSTS, *judge]


def _outlines(table: pa.Table) -> Iterator[Trial]:
    names = ColumnNames((), names_of(table.schema, "judge"), ())
    prompts: dict[tuple[Any, ...], Prompt] = {}
    costs: dict[tuple[Any, ...], Cost] = {}
    for start in range(0, len(table), _ROWS_AT_ONCE):
        for row in table.slice(start, _ROWS_AT_ONCE).to_pylist():
            check_values(row)
            about = (row["prompt_id"], row["prompt"], row.get("category") or "")
            spent = tuple(row[name] for name in _COSTS)
            # Costs and prompts are alike and many: equal ones are one object.
            if about not in prompts:
                prompts[about] = Prompt(*about)
            if spent not in costs:
                costs[spent] = Cost(*spent)
            yield Trial(
                id=row["trial_id"],
                prompt=prompts[about],
                round=row["round"],
                proposal=proposal_from_json(row["proposal"], lambda digest: _NO_MASK),
                progress=row["progress"],
                objective=objective_of_row(row),
                cost=costs[spent],
                judge=judge_of_row(row, names),
                error=row["error"] or "",
            )
