"""Writes the tables of a run folder: parts while the run goes on, one table at its end."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tts_verifier.errors import RunError
from tts_verifier.log.storage.files import Folder, digest_of
from tts_verifier.log.storage.tables import (
    DIGESTS,
    PARTS,
    ROW_GROUP,
    TABLE,
    TablePart,
    chosen_of,
    conform,
    last_of_each_id,
    open_table,
    parts_of,
    read_column,
    read_tables,
    table_digests,
)

FANOUT: Final = 64
"""Parts of one level that are merged into one of the next."""
LAST_LEVEL: Final = 2
"""The level whose parts are not merged before the end."""
MAX_LEVEL_ROWS: Final = 16 * ROW_GROUP
"""Rows of one level that are merged even if there are few parts: this bounds the memory."""


class TableWriter:
    """Writes rows as parts, merges parts, and writes the finished table.

    Not for sharing between threads. One thread appends; another may call `check_parts` and
    `finish` after the last `append`.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._parts = parts_of(folder.root)
        self._next = 1 + max((part.number for part in self._parts), default=-1)

    def append(self, table: pa.Table) -> None:
        """Writes rows as a part and flushes it, then merges parts where there are many.

        Raises:
            RunError: a file cannot be written.
        """
        self._parts.append(write_part(self._folder, table, number=self._next))
        self._next += 1
        self._folder.settle()
        self._merge()

    def check_parts(self) -> None:
        """Raises RunError when a part was removed while the run went on."""
        if gone := [part.path for part in self._parts if not part.path.exists()]:
            raise RunError(
                f"{gone[0]} was removed while the run was going on. The same command generates "
                "again what it held."
            )

    def finish(self, schema: pa.Schema, chosen: Collection[str]) -> None:
        """Writes the finished table, unless it exists and marks the same trials.

        Args:
            schema: of the finished table.
            chosen: ids of the chosen trials.

        Raises:
            RunError: a file cannot be written.
        """
        if self._parts or chosen_of(self._folder.root) != set(chosen):
            _write_finished(self._folder, schema, pa.array(chosen, pa.string()))
            self._parts = []

    def _merge(self) -> None:
        for level in range(LAST_LEVEL):
            same = [part for part in self._parts if part.level == level]
            # A level that stays as it is leaves those above it as they are.
            if len(same) < FANOUT and sum(part.rows for part in same) < MAX_LEVEL_ROWS:
                return
            # One large part alone would only be written again.
            if len(same) < 2:
                continue
            tables = [
                open_table(part.path, (part.digest,)).read() if part.table is None else part.table
                for part in same
            ]
            table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
            # Under the number of the last part that it replaces, it still precedes later parts.
            merged = write_part(self._folder, table, number=same[-1].number, level=level + 1)
            # The merged part is on the disk before the parts that it replaces go.
            self._folder.settle()
            for part in same:
                part.path.unlink()
            self._parts = [part for part in self._parts if part.level != level] + [merged]


def write_part(folder: Folder, table: pa.Table, *, number: int, level: int = 0) -> TablePart:
    """Writes rows as a part and returns it."""
    buffer = io.BytesIO()
    # Statistics and dictionaries pay off only for many rows.
    pq.write_table(
        table,
        buffer,
        row_group_size=ROW_GROUP,
        compression="zstd",
        write_statistics=level > 0,
        use_dictionary=level > 0,
    )
    content = buffer.getvalue()
    digest = digest_of(content)[:16]
    name = f"{PARTS}/{number:08d}.{level}.{digest}.parquet"
    folder.write(name, content)
    # Only parts of level 0 keep their rows in memory: they are small and will be merged soon.
    return TablePart(
        folder.root / name, number, level, digest, None if level else table, len(table)
    )


def _write_finished(folder: Folder, schema: pa.Schema, chosen: pa.Array) -> None:
    """Writes the finished table from the old one and the parts, then removes the parts."""
    parts = parts_of(folder.root)
    keep = last_of_each_id(read_column("trial_id", read_tables(folder.root)))
    draft = "trials.new"
    # Computed while the table is written: the whole table is never in memory.
    digest = hashlib.sha256()

    def write(file: Any) -> None:
        sink = pa.PythonFile(_Hashing(file, digest), mode="w")
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for rows in _row_groups(folder.root, schema, keep):
                writer.write_table(_finished_rows(rows, chosen))

    folder.write(draft, write)
    # A kill before the rename leaves the old table, a kill after it the new one. Until the rename
    # is done, both digests are therefore valid.
    lines = [*table_digests(folder.root), digest.hexdigest()]
    folder.write(DIGESTS, "".join(f"{line}  {TABLE}\n" for line in lines).encode())
    folder.settle()
    (folder.root / draft).replace(folder.root / TABLE)
    folder.write(DIGESTS, f"{digest.hexdigest()}  {TABLE}\n".encode())
    folder.settle()
    # The parts go last: after a kill in between, their rows exist twice, and the later ones count.
    for part in parts:
        part.path.unlink()


def _finished_rows(rows: pa.Table, chosen: pa.Array) -> pa.Table:
    """Marks the chosen rows, and removes the states: a finished run deletes their files."""
    none = pa.nulls(len(rows), pa.string())
    columns = {
        "state_path": none,
        "state_sha256": none,
        "chosen": pc.is_in(rows["trial_id"], chosen),
    }
    for name, values in columns.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(name), values)
    return rows


def _row_groups(folder: Path, schema: pa.Schema, keep: NDArray[np.bool_]) -> Iterator[pa.Table]:
    """Yields the rows to `keep` of all files, in tables of the size of a row group."""
    buffered: list[pa.Table] = []
    place = 0
    groups = (
        file.read_group(number)
        for file in read_tables(folder)
        for number in range(len(file.group_sizes))
    )
    for group in groups:
        table = conform(group, schema)
        buffered.append(table.filter(pa.array(keep[place : place + len(table)])))
        place += len(table)
        if sum(map(len, buffered)) >= ROW_GROUP:
            whole = pa.concat_tables(buffered)
            full = len(whole) // ROW_GROUP * ROW_GROUP
            for start in range(0, full, ROW_GROUP):
                yield whole.slice(start, ROW_GROUP).combine_chunks()
            buffered = [whole.slice(full)]
    rest = pa.concat_tables(buffered) if buffered else schema.empty_table()
    if len(rest):
        yield rest.combine_chunks()


class _Hashing(io.RawIOBase):
    """A binary file that digests the bytes written through it."""

    def __init__(self, file: Any, digest: Any) -> None:
        self._file, self._digest = file, digest

    def writable(self) -> bool:
        """Returns True."""
        return True

    def write(self, content: Any) -> int:
        """Writes and digests bytes."""
        self._digest.update(content)
        return int(self._file.write(content))

    def tell(self) -> int:
        """Returns how many bytes were written."""
        return int(self._file.tell())
