"""Reads the tables of a run folder: small parts while the run goes on, one table at its end.

A part's name is `NUMBER.LEVEL.DIGEST.parquet`. Every verified batch is a part of level 0. When a
level has many parts or many rows, they are merged into one part of the next level, as in a
log-structured merge tree (O'Neil et al. 1996): a million rows are then about a hundred files. The
digest is the first 16 hex digits of the file's SHA-256 and reveals a torn or foreign file. The
digest of the finished table is in `trials.sha256`. That file is written before the table is
replaced, and names the old and the new digest until then.

The later of two rows with the same trial id counts. A kill between a merge and the removal of the
merged parts leaves equal rows; a trial that was generated again leaves a newer one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tts_verifier.errors import RunError

TABLE: Final = "trials.parquet"
PARTS: Final = "parts"
DIGESTS: Final = "trials.sha256"
ROW_GROUP: Final = 4096
LARGE: Final = 2**22
"""Bytes; a larger file stays on the disk until its rows are read."""
_NEEDED: Final = {"trial_id", "prompt_id", "proposal", "image_path", "mask_path"}
_OLD_NAMES: Final = {"draw_seconds": "generate_seconds", "judge_seconds": "verify_seconds"}
"""Columns of schema 1 and their names in schema 2."""
# The first logs named parts by their number alone.
_PART_NAME: Final = re.compile(r"(\d{8,})(?:\.(\d)\.([0-9a-f]{16}))?\.parquet")


@dataclass(frozen=True, slots=True)
class TablePart:
    """The file of one part."""

    path: Path
    """The file."""
    number: int
    """Its position in the order in which parts were written."""
    level: int = 0
    """How often its rows were merged."""
    digest: str = ""
    """The first 16 hex digits of the file's SHA-256; "" where the name has none."""
    table: pa.Table | None = None
    """The rows of a small part of this process: merging need not read them back."""
    rows: int = 0
    """The number of rows of a part of this process, else 0."""


class TableFile:
    """A checked Parquet file whose rows are read on demand, with the column names of schema 2."""

    def __init__(self, file: pq.ParquetFile, written: int) -> None:
        self._file = file
        self.written = written
        """When the file was written, in nanoseconds since the epoch."""
        self.schema = upgraded_schema(file.schema_arrow)
        self._name_in_file = dict(zip(self.schema.names, file.schema_arrow.names, strict=True))

    @property
    def group_sizes(self) -> list[int]:
        """The number of rows of each row group."""
        about = self._file.metadata
        return [about.row_group(number).num_rows for number in range(about.num_row_groups)]

    def read(self, columns: Iterable[str] | None = None) -> pa.Table:
        """Returns all rows.

        Args:
            columns: the columns to read; a missing one is skipped; None = all.
        """
        return self._renamed(self._file.read(self._names_in_file(columns)))

    def read_group(self, number: int, columns: Iterable[str] | None = None) -> pa.Table:
        """Returns the rows of one row group; `columns` as in `read`."""
        return self._renamed(self._file.read_row_group(number, self._names_in_file(columns)))

    def _names_in_file(self, columns: Iterable[str] | None) -> list[str] | None:
        if columns is None:
            return None
        return [self._name_in_file[name] for name in columns if name in self._name_in_file]

    def _renamed(self, table: pa.Table) -> pa.Table:
        if self.schema.equals(self._file.schema_arrow, check_metadata=True):
            return table
        fields = {self._name_in_file[f.name]: f for f in self.schema}
        schema = pa.schema([fields[name] for name in table.column_names])
        return pa.table(table.columns, schema=schema)


def parts_of(folder: Path) -> list[TablePart]:
    """Returns the parts of a run folder in the order in which they were written."""
    parts = []
    for path in (folder / PARTS).glob("*.parquet"):
        if match := _PART_NAME.fullmatch(path.name):
            number, level, digest = match.groups()
            parts.append(TablePart(path, int(number), int(level or 0), digest or ""))
    # A merged part has the number of the last part that it replaces. After a kill both exist; the
    # merged one comes first.
    return sorted(parts, key=lambda part: (part.number, -part.level))


def foreign_files(folder: Path) -> list[Path]:
    """Returns the files in the folder of parts that are not parts."""
    files = (folder / PARTS).glob("*")
    return sorted(path for path in files if not _PART_NAME.fullmatch(path.name))


def read_tables(
    folder: Path, damaged: Callable[[Path, str], None] | None = None
) -> Iterator[TableFile]:
    """Yields the finished table, if there is one, then the parts.

    Args:
        folder: the run folder.
        damaged: called with the path of a damaged file and the reason; None = raise an error.

    Raises:
        RunError: a file is damaged.
        FileNotFoundError: a part was merged since the folder was listed.
    """
    files: list[tuple[Path, Iterable[str]]] = [(p.path, (p.digest,)) for p in parts_of(folder)]
    if (folder / TABLE).exists():
        files.insert(0, (folder / TABLE, table_digests(folder)))
    for path, digests in files:
        try:
            yield open_table(path, digests)
        except FileNotFoundError:
            # Not damage: a running process merged the part. `read_table` starts again.
            raise
        except (OSError, pa.ArrowException, ValueError) as error:
            if damaged is None:
                raise RunError(
                    f"{path} is damaged ({error}). The command that made the run sets it aside "
                    "and generates its rows again."
                ) from error
            damaged(path, str(error))


def read_table(
    folder: Path, columns: Callable[[pa.Schema], list[str]] | None = None
) -> pa.Table | None:
    """Returns all rows, without those that a later row of the same id replaces; None if no table.

    Args:
        folder: the run folder.
        columns: returns those to read of a file with this schema, `trial_id` among them; None =
            all.

    Raises:
        RunError: a file is damaged.
    """
    while True:
        try:
            tables = [
                file.read(None if columns is None else columns(file.schema))
                for file in read_tables(folder)
            ]
        except FileNotFoundError:
            # A running process merged parts after they were listed: list them again.
            continue
        break
    if not tables:
        return None
    # "permissive": a score that came later is missing in earlier parts.
    table = pa.concat_tables(tables, promote_options="permissive")
    keep = last_of_each_id(table["trial_id"])
    return table if keep.all() else table.filter(pa.array(keep))


def read_column(name: str, files: Iterable[TableFile]) -> pa.ChunkedArray:
    """Returns a column of strings, file after file."""
    pieces = [file.read([name])[name] for file in files]
    return pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks], pa.string())


def chosen_of(folder: Path) -> set[str] | None:
    """Returns the ids of the chosen trials in the finished table, None without a table."""
    if not (folder / TABLE).exists():
        return None
    table = pq.read_table(folder / TABLE, columns=["trial_id", "chosen"])
    return set(table.filter(table["chosen"])["trial_id"].to_pylist())


def last_of_each_id(ids: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Returns, for every row, False where a later row has the same trial id."""
    sorted_ids = ids.combine_chunks()
    # Sorting takes a fifth of the memory of a hash table. It is stable: later rows come last.
    places = pc.sort_indices(sorted_ids)
    sorted_ids = sorted_ids.take(places)
    repeated = pc.equal(sorted_ids[:-1], sorted_ids[1:]).to_numpy(zero_copy_only=False)
    keep = np.ones(len(ids), np.bool_)
    keep[places.to_numpy()[:-1][repeated]] = False
    return keep


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns the table with the schema's columns, null where it has none."""
    columns = [
        table[f.name] if f.name in table.column_names else pa.nulls(len(table), f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)


def table_digests(folder: Path) -> list[str]:
    """Returns the digests that the finished table may have; empty = it cannot be checked."""
    try:
        lines = (folder / DIGESTS).read_text("ascii").splitlines()
    except OSError:
        return []
    return [line.split()[0] for line in lines if line.strip()]


def open_table(path: Path, digests: Iterable[str]) -> TableFile:
    """Opens a table and checks it.

    Raises:
        ValueError: its SHA-256 begins with none of the digests, or it lacks columns of a log.
    """
    about = path.stat()
    # A small file is read whole and does not stay open; there may be a hundred of them.
    large = about.st_size > LARGE
    content = pa.OSFile(str(path)) if large else pa.BufferReader(path.read_bytes())
    expected = [digest for digest in digests if digest]
    digest = hashlib.file_digest(content, "sha256").hexdigest()
    if expected and not digest.startswith(tuple(expected)):
        raise ValueError("its SHA-256 is not the one noted")
    content.seek(0)
    file = pq.ParquetFile(content)
    if missing := _NEEDED - set(file.schema_arrow.names):
        raise ValueError(f"it has no column {min(missing)}")
    if not expected:
        # Without a digest, only reading every page shows whether the file is whole.
        file.read()
    return TableFile(file, about.st_mtime_ns)


def upgraded_schema(schema: pa.Schema) -> pa.Schema:
    """Returns a table's schema with the names of schema 2; the order of columns stays.

    Schema 1 has `draw_seconds` and `judge_seconds` for the times, and `draw_NAME` for the
    generator's settings. Only a table of schema 1 has a column `draw_seconds` without a role.
    """
    if "draw_seconds" not in schema.names or schema.field("draw_seconds").metadata:
        return schema

    def renamed(f: pa.Field) -> pa.Field:
        if f.metadata and f.metadata.get(b"role") == b"draw":
            metadata = {**f.metadata, b"role": b"generator"}
            return f.with_name(f"generator_{f.name.removeprefix('draw_')}").with_metadata(metadata)
        return f.with_name(_OLD_NAMES.get(f.name, f.name)) if not f.metadata else f

    return pa.schema([renamed(f) for f in schema])
