"""Reads the folder of a training run, which may come from a stranger, or be torn by a kill.

    run.json                 the settings, by name
    metrics/NUMBER.parquet   a row for each step from this number on, with its own as `step`
    examples.parquet         what the trained verifier says of held-out pictures

Nothing is imported from `training`, which writes it: what a file holds is checked here. Files are
plain files inside the folder, and what is not as it should be is an error that names the file.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from tts_verifier.errors import InputError, RunError
from tts_verifier.log.header import HEADER
from tts_verifier.log.storage.files import files_in
from tts_verifier.types.paths import read_inside

SETTINGS: Final = "run.json"
METRICS: Final = "metrics"
EXAMPLES: Final = "examples.parquet"
ABOUT: Final = b"tts-verifier run"
"""The key of a metrics file's metadata that says where its steps were taken."""
MOST_VALUES: Final = 50_000_000
"""Of all metrics: a million steps with 50 of them."""
MOST_EXAMPLES: Final = 64
"""More are not shown."""
_MOST_JSON: Final = 2**20
_MOST_TABLE: Final = 2**28
"""Bytes of a table, packed; unpacked it may have twice as many."""
_NUMBERED: Final = re.compile(r"\d{8,}\.parquet")

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class StoredRun:
    """A training run as its folder has it."""

    name: str
    """The folder's name."""
    settings: Mapping[str, str]
    """As texts: texts themselves, anything else as JSON."""
    total: int | None
    """Steps of the whole run; None = not said."""
    places: tuple[Mapping[str, str], ...]
    """Where steps were taken, such as device and precision, as texts; in the order of the steps."""
    steps: Values
    """The numbers of the steps that were taken, rising."""
    columns: Mapping[str, Values]
    """Metric -> its value at each step; NaN = none."""
    examples: tuple[Mapping[str, Any], ...]
    """Rows of the examples, unchecked but for their columns' names."""


def is_training_run(folder: Path) -> bool:
    """Returns whether a folder is that of a training run, and not that of a search."""
    return os.path.lexists(folder / SETTINGS) and not os.path.lexists(folder / HEADER)


def read_stored(folder: Path) -> StoredRun:
    """Reads a training run, finished or running.

    Raises:
        RunError: a file is damaged, or no plain file inside the folder.
        InputError: no step was written yet.
    """
    settings = _read_settings(folder)
    tables = _read_metrics(folder)
    if not sum(len(table) for table in tables):
        raise InputError(
            f"{folder} has no metrics of a step yet; they are written when a run keeps its state. "
            "Report on it later."
        )
    steps, columns = _steps_and_columns(folder, tables)
    total = settings.get("steps")
    return StoredRun(
        name=folder.resolve().name,
        settings={name: _as_text(value) for name, value in settings.items()},
        total=total if type(total) is int and 0 < total < 2**53 else None,
        places=_places(tables),
        steps=steps,
        columns=columns,
        examples=_read_examples(folder),
    )


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    try:
        settings = json.loads(read_inside(folder, SETTINGS, most=_MOST_JSON))
        # A value that cannot be written again, such as one that is nested too deep, fails here.
        json.dumps(settings)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} must hold the settings of a training run: {error}.") from error
    if not isinstance(settings, dict):
        raise RunError(
            f"{path} must hold the settings of a training run by their names, as JSON, and holds "
            f"{_as_text(settings)[:80]}."
        )
    return settings


def _read_metrics(folder: Path) -> list[pa.Table]:
    tables, total = [], 0
    for path in files_in(folder, METRICS):
        # A run that goes on removes files, and leaves drafts for a moment.
        if _NUMBERED.fullmatch(path.name) and os.path.lexists(path):
            table = _read_rows(folder, f"{METRICS}/{path.name}", MOST_VALUES - total)
            total += len(table) * table.num_columns
            tables.append(table)
    return tables


def _read_rows(folder: Path, path: str, most: int) -> pa.Table:
    """Reads a table of at most so many values."""
    try:
        content = read_inside(folder, path, most=_MOST_TABLE)
        with parquet.ParquetFile(pa.BufferReader(content)) as file:
            about = file.metadata
            groups = [about.row_group(i) for i in range(about.num_row_groups)]
            unpacked = sum(group.total_byte_size for group in groups)
            if about.num_rows * about.num_columns > most or unpacked > 2 * _MOST_TABLE:
                raise ValueError(
                    f"{about.num_rows} rows of {about.num_columns} columns are too many; a report "
                    f"has at most {MOST_VALUES} values"
                )
            return file.read()
    # Damaged files are ArrowInvalid, OSError and whatever else pyarrow raises.
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder / path} must be a Parquet file that a training run wrote, and cannot be "
            f"read: {str(error)[:200]}. Move it away."
        ) from error


def _steps_and_columns(
    folder: Path, tables: Sequence[pa.Table]
) -> tuple[Values, dict[str, Values]]:
    """Returns steps and columns of all tables; of rows of one step the last counts."""
    for table in tables:
        if "step" not in table.column_names or len(set(table.column_names)) != table.num_columns:
            raise RunError(
                f"{folder / METRICS} must hold tables with different columns, one of them step; "
                f"one has {', '.join(table.column_names)[:200]}. Move it away."
            )
    steps = np.concatenate([_numbers(table["step"]) for table in tables])
    if not np.isfinite(steps).all():
        raise RunError(f"{folder / METRICS} has a row whose step is no number. Move it away.")
    # The last row of each step: np.unique gives the first, so it looks from behind.
    steps, from_behind = np.unique(steps[::-1], return_index=True)
    rows = sum(len(table) for table in tables) - 1 - from_behind
    names = dict.fromkeys(n for t in tables for n in t.column_names if n != "step")
    columns = {}
    for name in names:
        parts = [
            _numbers(t[name]) if name in t.column_names else np.full(len(t), np.nan) for t in tables
        ]
        columns[name] = np.concatenate(parts)[rows]
    return steps, {n: v for n, v in columns.items() if _is_number(tables, n)}


def _is_number(tables: Sequence[pa.Table], name: str) -> bool:
    types = [t.schema.field(name).type for t in tables if name in t.column_names]
    return any(map(_counts, types))


def _counts(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    )


def _numbers(column: pa.ChunkedArray) -> Values:
    """Returns a column as numbers: NaN for others and those too large for a chart, 0 for tiny."""
    if not _counts(column.type):
        return np.full(len(column), np.nan)
    values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)
    values = np.where(np.abs(values) < 1e100, values, np.nan)
    return np.where(np.abs(values) < 1e-100, 0.0, values)


def _places(tables: Sequence[pa.Table]) -> tuple[Mapping[str, str], ...]:
    found: list[dict[str, str]] = []
    for table in tables:
        try:
            about = json.loads((table.schema.metadata or {}).get(ABOUT, b"{}"))
        except (ValueError, RecursionError):
            continue
        if isinstance(about, dict) and about:
            texts = {name: _as_text(value) for name, value in about.items()}
            if texts not in found:
                found.append(texts)
    return tuple(found)


def _read_examples(folder: Path) -> tuple[Mapping[str, Any], ...]:
    if not os.path.lexists(folder / EXAMPLES):
        return ()
    table = _read_rows(folder, EXAMPLES, MOST_VALUES)
    if len(set(table.column_names)) != table.num_columns:
        raise RunError(f"{folder / EXAMPLES} must have different columns. Move it away.")
    try:
        # A slice counts its rows wrongly where there are no columns.
        return tuple(table.slice(0, min(MOST_EXAMPLES, len(table))).to_pylist())
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise RunError(f"{folder / EXAMPLES} cannot be read: {error}. Move it away.") from error


def _as_text(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return "?"
