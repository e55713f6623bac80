"""Reads a large run folder prompt by prompt, or only what its numbers need.

Rows stay in a compact table, and trials are made of a few prompts at a time: as Python objects,
all trials of a large run at once would take ten times the memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tts_verifier.errors import RunError
from tts_verifier.identity import proposal_from_json
from tts_verifier.log.schema import ColumnNames, judge_of_row, names_of, to_trial
from tts_verifier.log.storage.tables import read_table
from tts_verifier.types import Cost, Mask, Prompt, Trial

_ROWS_AT_ONCE: Final = 4096
"""So many rows, or those of one prompt, are Python objects at once."""
_COSTS: Final = tuple(Cost.__dataclass_fields__)
_OUTLINE: Final = ("trial_id", "prompt_id", "prompt", "round", "proposal", "progress", "objective")
_NO_MASK: Final = Mask(0, 0, b"")


class LoggedPrompts:
    """The trials of a run folder, prompt by prompt, in the order of their first rows.

    Args:
        folder: the run folder.

    Raises:
        RunError: a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._table = folder, read_table(folder)
        if self._table is None:
            self._names, self._rows = ColumnNames((), (), ()), []
            return
        self._names = ColumnNames.of(self._table.schema)
        self._rows = _rows_by_value(self._table["prompt_id"])

    @property
    def heatmaps(self) -> Sequence[str]:
        """Names of heatmaps that at least one trial may have."""
        return list(self._names.heatmap)

    @property
    def judge(self) -> Sequence[str]:
        """Names of the held-out judge's scores."""
        return list(self._names.judge)

    @property
    def sizes(self) -> list[int]:
        """The number of trials of each prompt."""
        return [len(rows) for rows in self._rows]

    def __iter__(self) -> Iterator[list[Trial]]:
        """Yields all trials of each prompt, in the order of the log.

        Raises:
            RunError: a row is not a trial.
        """
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
        low, high = int(rows.min()), int(rows.max()) + 1
        part = self._table.slice(low, high - low)
        # The rows of a prompt mostly follow one another; taking single rows is slow.
        if high - low != len(rows) or not (np.diff(rows) == 1).all():
            part = part.take(pa.array(rows - low))
        for row in part.to_pylist():
            yield to_trial(row, self._folder, self._names)


def read_outlines(folder: Path) -> list[Trial]:
    """Returns the trials of a run folder without verdicts and files, for what needs numbers only.

    A mask is empty, its file is not read; everything else is as `read_trials` gives it.

    Raises:
        RunError: a file is damaged, or a row is not a trial.
    """
    table = read_table(folder, _outline_columns)
    if table is None:
        return []
    try:
        return list(_outlines(table))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{folder} holds a row that is not a trial: {error!r}.") from error


def _outline_columns(schema: pa.Schema) -> list[str]:
    judge = [f"judge_{name}" for name in names_of(schema, "judge")]
    return [*_OUTLINE, "category", "error", *_COSTS, *judge]


def _outlines(table: pa.Table) -> Iterator[Trial]:
    names = ColumnNames((), names_of(table.schema, "judge"), ())
    prompts: dict[tuple[Any, ...], Prompt] = {}
    costs: dict[tuple[Any, ...], Cost] = {}
    for start in range(0, len(table), _ROWS_AT_ONCE):
        for row in table.slice(start, _ROWS_AT_ONCE).to_pylist():
            about = (row["prompt_id"], row["prompt"], row.get("category") or "")
            spent = tuple(row[name] for name in _COSTS)
            # Costs and prompts are alike and many: equal ones are one object.
            if about not in prompts:
                prompts[about] = Prompt(*about)
            if spent not in costs:
                costs[spent] = Cost(*spent)
            objective = row["objective"]
            yield Trial(
                id=row["trial_id"],
                prompt=prompts[about],
                round=row["round"],
                proposal=proposal_from_json(row["proposal"], lambda digest: _NO_MASK),
                progress=row["progress"],
                objective=math.nan if objective is None else objective,
                cost=costs[spent],
                judge=judge_of_row(row, names),
                error=row["error"] or "",
            )


def _rows_by_value(column: pa.ChunkedArray) -> list[NDArray[np.int64]]:
    """Returns the numbers of the rows of each value, the values in the order of their first."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
