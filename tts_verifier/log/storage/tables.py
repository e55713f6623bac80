"""Reads the tables of a run folder: small parts while the run goes on, one table at its end.

A part's name is `NUMBER.LEVEL.DIGEST.parquet`. Every verified batch is a part of level 0. When a
level has many parts or many rows, they are merged into one part of the next level, as in a
log-structured merge tree (O'Neil et al. 1996): a million rows are then about a hundred files. The
digest is the first 16 hex digits of the file's SHA-256 and reveals a torn file. The digest of the
finished table is in the header, which names the old and the new one while the table is replaced.
The metadata of every table name its run: a table of another one is noticed.

The later of two rows with the same trial id counts. A kill between a merge and the removal of the
merged parts leaves equal rows; a trial that was generated again leaves a newer one.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tts_verifier.errors import RunError
from tts_verifier.log.storage.binding import Binding, files_written, run_of
from tts_verifier.log.storage.columns import check_columns, upgraded_schema
from tts_verifier.log.storage.files import changed_at, files_in, is_digest, is_plain_file
from tts_verifier.types.paths import read_inside

TABLE: Final = "trials.parquet"
PARTS: Final = "parts"
DIGESTS: Final = "trials.sha256"
ROW_GROUP: Final = 4096
LARGE: Final = 2**22
"""Bytes; a larger file stays on the disk until its rows are read."""
_MOST_TRIES: Final = 20
# The first logs named parts by their number alone.
_PART_NAME: Final = re.compile(r"(\d{8,18})(?:\.(\d)\.([0-9a-f]{16}))?\.parquet", re.ASCII)


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
    written: NDArray[np.int64] | None = None
    """As `TableFile.written`, for a small part of this process."""


class TableFile:
    """A checked Parquet file whose rows are read on demand, with the column names of schema 2."""

    def __init__(
        self, path: Path, file: pq.ParquetFile, about: os.stat_result, *, threads: bool
    ) -> None:
        self.path, self._file, self._threads = path, file, threads
        self.changed = changed_at(about)
        """When the file was last changed, as `changed_at`."""
        self.schema = upgraded_schema(file.schema_arrow)
        self._name_in_file = dict(zip(self.schema.names, file.schema_arrow.names, strict=True))
        self.written = files_written(file.metadata, about)
        """For each row, when its files were last changed; 0 = unknown."""

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
        return self._renamed(self._checked(self._file.read, self._names_in_file(columns)))

    def read_group(self, number: int, columns: Iterable[str] | None = None) -> pa.Table:
        """Returns the rows of one row group; `columns` as in `read`."""
        names = self._names_in_file(columns)
        return self._renamed(self._checked(self._file.read_row_group, number, names))

    def _checked(self, read: Callable[..., pa.Table], *arguments: Any) -> pa.Table:
        try:
            # Of a small table, handing columns to threads takes longer than reading them.
            return read(*arguments, use_threads=self._threads)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise damage(self.path, error) from error

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


def damage(path: Path, why: object) -> RunError:
    """Returns the error for a table that cannot be used."""
    return RunError(
        f"{path} is damaged ({why}). The command that made the run sets it aside and generates "
        "its rows again."
    )


def parts_of(folder: Path) -> list[TablePart]:
    """Returns the parts of a run folder in the order in which they were written."""
    parts = []
    for path in files_in(folder, PARTS):
        if match := _PART_NAME.fullmatch(path.name):
            number, level, digest = match.groups()
            parts.append(TablePart(path, int(number), int(level or 0), digest or ""))
    # A merged part has the number of the last part that it replaces. After a kill both exist; the
    # merged one comes first.
    return sorted(parts, key=lambda part: (part.number, -part.level))


def foreign_files(folder: Path) -> list[Path]:
    """Returns the files in the folder of parts that are not parts."""
    return [path for path in files_in(folder, PARTS) if not _PART_NAME.fullmatch(path.name)]


def read_tables(
    folder: Path, binding: Binding, damaged: Callable[[Path, str], None] | None = None
) -> Iterator[TableFile]:
    """Yields the finished table, if there is one, then the parts.

    Args:
        folder: the run folder.
        binding: from the header.
        damaged: called with the path of a table that is damaged or another run's, and the reason;
            None = raise an error.

    Raises:
        RunError: such a table.
        FileNotFoundError: a part was merged since the folder was listed.
    """
    files: list[tuple[Path, Iterable[str]]] = [(p.path, (p.digest,)) for p in parts_of(folder)]
    if os.path.lexists(folder / TABLE):
        files.insert(0, (folder / TABLE, binding.table))
    for path, digests in files:
        try:
            yield open_table(path, digests, binding)
        except FileNotFoundError:
            # Not damage: a running process merged the part. `stable` starts again.
            raise
        except UnusableTable as error:
            if damaged is None:
                raise damage(path, error) from error
            damaged(path, str(error))


ReadT = TypeVar("ReadT")


def stable(
    folder: Path, binding_of: Callable[[Path], Binding], read: Callable[[Binding], ReadT]
) -> ReadT:
    """Reads the tables of a folder that another process may be writing.

    That process may merge parts after they were listed, or replace the finished table between
    the look at the header and the look at the table. Then everything is read again.

    Args:
        folder: the run folder.
        binding_of: reads the binding from the folder's header.
        read: reads the tables.

    Raises:
        RunError: a table is damaged.
    """
    before = None
    for tries_left in reversed(range(_MOST_TRIES)):
        binding = binding_of(folder)
        now = (binding, [part.path.name for part in parts_of(folder)])
        try:
            return read(binding)
        except FileNotFoundError as error:
            if not tries_left:
                raise damage(Path(error.filename or folder), error.strerror) from error
            if now == before:
                # A network file system may list names that are gone for a while.
                time.sleep(0.05)
        except RunError:
            if not tries_left or binding_of(folder) == binding:
                raise
        before = now
    raise AssertionError("the last try returns or raises")


def read_latest_rows(
    folder: Path, binding: Binding, columns: Callable[[pa.Schema], list[str]] | None = None
) -> pa.Table | None:
    """Returns all rows, without those that a later row of the same id replaces; None if no table.

    Args:
        folder: the run folder.
        binding: from the header.
        columns: returns those to read of a file with this schema, `trial_id` among them; None =
            all.

    Raises:
        RunError: a file is damaged.
        FileNotFoundError: as `read_tables`.
    """
    tables = [
        file.read(None if columns is None else columns(file.schema))
        for file in read_tables(folder, binding)
    ]
    if not tables:
        return None
    try:
        # "permissive": a score that came later is missing in earlier parts.
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise damage(folder, f"its tables have different columns: {error}") from error
    keep = last_of_each_id(table["trial_id"])
    return table if keep.all() else table.filter(pa.array(keep))


def read_column(name: str, files: Iterable[TableFile]) -> pa.ChunkedArray:
    """Returns a column of strings, file after file."""
    pieces = [file.read([name])[name] for file in files]
    return pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks], pa.string())


def chosen_of(folder: Path, binding: Binding) -> set[str] | None:
    """Returns the ids of the chosen trials in the finished table, None without a table."""
    if not os.path.lexists(folder / TABLE):
        return None
    try:
        table = open_table(folder / TABLE, binding.table, binding).read(["trial_id", "chosen"])
    except UnusableTable as error:
        raise damage(folder / TABLE, error) from error
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


def places_by_prompt(
    tables: Sequence[TableFile], *, last_only: bool = False
) -> dict[str, NDArray[np.int64]]:
    """Returns the positions of each prompt's rows in all tables: eight bytes per row.

    Args:
        tables: one after the other.
        last_only: leave out rows that a later row of the same id replaces.

    Returns:
        Positions by prompt id, in the order of the prompts' first rows.
    """
    if not tables:
        # Arrow's dictionary encoding is slow the first time; a new run need not wait for it.
        return {}
    ids = read_column("prompt_id", tables).combine_chunks()
    rows = np.arange(len(ids))
    if last_only:
        rows = np.flatnonzero(last_of_each_id(read_column("trial_id", tables)))
        ids = ids.take(pa.array(rows))
    encoded = ids.dictionary_encode("encode")
    numbers = encoded.indices.to_numpy()
    ends = np.cumsum(np.bincount(numbers, minlength=len(encoded.dictionary)))
    # The last cut is at the very end, and what follows it is empty.
    places = np.split(rows[np.argsort(numbers, kind="stable")], ends)[:-1]
    return dict(zip(encoded.dictionary.to_pylist(), places, strict=True))


def common_schema(folder: Path, tables: Iterable[TableFile]) -> pa.Schema:
    """Returns the schema of all tables of a log; raises RunError if they do not fit together."""
    # The empty schema is there for a new run: Arrow refuses to unify no schema at all.
    schemas = [pa.schema([]), *(table.schema for table in tables)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise damage(folder, f"its tables have different columns: {error}") from error


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns the table with the schema's columns, null where it has none."""
    columns = [
        table[f.name] if f.name in table.column_names else pa.nulls(len(table), f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)


def table_digests(folder: Path) -> list[str]:
    """Returns the digests in `trials.sha256`; empty = there are none.

    Logs before schema 3 have no others. Later ones have the file for people, who may check the
    table by `sha256sum -c`; whatever else is in its place is replaced.
    """
    try:
        lines = read_inside(folder, DIGESTS, most=2**16).decode("ascii", "replace").splitlines()
    except (OSError, RunError):
        return []
    return [word for line in lines if (word := line.split(" ")[0]) and is_digest(word)]


class UnusableTable(Exception):
    """A table that is damaged, no part of a log, or another run's: the message says which."""


def open_table(path: Path, digests: Iterable[str], binding: Binding) -> TableFile:
    """Opens a table and checks it.

    Args:
        path: of a file in a run folder.
        digests: beginnings of its SHA-256, of which one must fit; none = the binding decides.
        binding: from the header.

    Raises:
        UnusableTable: its SHA-256 begins with none of the digests, it lacks columns of a log, or
            it is another run's.
        FileNotFoundError: it does not exist.
    """
    try:
        return _open_table(path, [digest for digest in digests if digest], binding)
    except FileNotFoundError:
        raise
    # A hostile table makes Arrow and the decoders of its metadata raise whatever they like.
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnusableTable(str(error)) from error


def _open_table(path: Path, expected: list[str], binding: Binding) -> TableFile:
    about = os.lstat(path)
    if not is_plain_file(about):
        raise ValueError("it is no plain file")
    # A small file is read whole and does not stay open; there may be a hundred of them.
    large = about.st_size > LARGE
    content = pa.OSFile(str(path)) if large else pa.BufferReader(path.read_bytes())
    digest = hashlib.file_digest(content, "sha256").hexdigest()
    if expected and not digest.startswith(tuple(expected)):
        raise ValueError("its SHA-256 is not the one noted")
    content.seek(0)
    file = pq.ParquetFile(content)
    check_columns(upgraded_schema(file.schema_arrow))
    run = run_of(file.metadata)
    if run != binding.run and (run or digest[:16] not in binding.unbound):
        raise ValueError("it is a table of another run")
    if path.name == TABLE and binding.run and not expected:
        raise ValueError("no SHA-256 is noted for it")
    table = TableFile(path, file, about, threads=large)
    # Without a digest, only reading every page shows whether the file is whole.
    ids = file.read(None if not expected else ["trial_id", "prompt_id"], use_threads=large)
    if ids["trial_id"].null_count or ids["prompt_id"].null_count:
        raise ValueError("a row of it has no id")
    # A continued run has these from its jobs and does not read them.
    if any(_has_nulls(file, name) for name in ("prompt", "proposal")):
        raise ValueError("a row of it has no prompt or proposal")
    return table


def _has_nulls(file: pq.ParquetFile, name: str) -> bool:
    place = file.schema.names.index(name)
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    statistics = [group.column(place).statistics for group in groups]
    if all(found is not None and found.has_null_count for found in statistics):
        return any(found.null_count for found in statistics)
    return bool(file.read([name])[name].null_count)
