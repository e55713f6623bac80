"""Writes the tables of a run folder: parts while the run goes on, one table at its end."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tts_verifier.errors import RunError
from tts_verifier.log.storage.binding import Binding
from tts_verifier.log.storage.files import Folder, digest_of
from tts_verifier.log.storage.tables import (
    DIGESTS,
    PARTS,
    ROW_GROUP,
    TABLE,
    TableFile,
    TablePart,
    UnusableTable,
    chosen_of,
    conform,
    damage,
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
        binding: from its header.
        note_table: writes to the header which digests the finished table may have.
    """

    def __init__(
        self, folder: Folder, binding: Binding, note_table: Callable[[Sequence[str]], Binding]
    ) -> None:
        self._folder, self._binding, self._note_table = folder, binding, note_table
        self._parts = parts_of(folder.root)
        self._next = 1 + max((part.number for part in self._parts), default=-1)

    def append(self, table: pa.Table, written: int = 0) -> None:
        """Writes rows as a part and flushes it, then merges parts where there are many.

        Args:
            table: the rows.
            written: when the last of their files was changed, as `changed_at`; 0 = unknown.

        Raises:
            RunError: a file cannot be written.
        """
        times = np.full(len(table), written, np.int64)
        self._parts.append(self._write_part(table, times, number=self._next))
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

    def finish(
        self, schema: pa.Schema, chosen: Collection[str], objectives: Mapping[str, float]
    ) -> None:
        """Writes the finished table, unless it exists and marks the same trials.

        Args:
            schema: of the finished table.
            chosen: ids of the chosen trials.
            objectives: trial id -> the objective to write in place of the row's.

        Raises:
            RunError: a file cannot be written.
        """
        if self._parts or chosen_of(self._folder.root, self._binding) != set(chosen):
            self._write_finished(schema, pa.array(chosen, pa.string()), objectives)
            self._parts = []
        elif table_digests(self._folder.root) != list(self._binding.table):
            # Somebody deleted the file, or the process was killed before it wrote it.
            self._write_digests()

    def _merge(self) -> None:
        for level in range(LAST_LEVEL):
            same = [part for part in self._parts if part.level == level]
            # A level that stays as it is leaves those above it as they are.
            if len(same) < FANOUT and sum(part.rows for part in same) < MAX_LEVEL_ROWS:
                return
            # One large part alone would only be written again.
            if len(same) < 2:
                continue
            tables, times = zip(*map(self._rows_of, same), strict=True)
            table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
            # Under the number of the last part that it replaces, it still precedes later parts.
            merged = self._write_part(
                table, np.concatenate(times), number=same[-1].number, level=level + 1
            )
            # The merged part is on the disk before the parts that it replaces go.
            self._folder.settle()
            for part in same:
                self._delete(part)
            self._parts = [part for part in self._parts if part.level != level] + [merged]

    def _rows_of(self, part: TablePart) -> tuple[pa.Table, NDArray[np.int64]]:
        if part.table is not None and part.written is not None:
            return part.table, part.written
        try:
            file = open_table(part.path, (part.digest,), self._binding)
        except (UnusableTable, FileNotFoundError) as error:
            raise damage(part.path, error) from error
        return file.read(), file.written

    def _delete(self, part: TablePart) -> None:
        self._folder.delete(part.path.relative_to(self._folder.root).as_posix())

    def _write_part(
        self, table: pa.Table, written: NDArray[np.int64], *, number: int, level: int = 0
    ) -> TablePart:
        """Writes rows as a part and returns it."""
        buffer = io.BytesIO()
        # Statistics and dictionaries pay off only for many rows.
        with pq.ParquetWriter(
            buffer,
            table.schema,
            compression="zstd",
            write_statistics=level > 0,
            use_dictionary=level > 0,
        ) as writer:
            writer.add_key_value_metadata(self._binding.metadata(written))
            writer.write_table(table, row_group_size=ROW_GROUP)
        content = buffer.getvalue()
        digest = digest_of(content)[:16]
        name = f"{PARTS}/{number:08d}.{level}.{digest}.parquet"
        self._folder.write(name, content)
        path = self._folder.root / name
        if level:
            return TablePart(path, number, level, digest, rows=len(table))
        # Only parts of level 0 keep their rows in memory: they are small and will be merged soon.
        return TablePart(path, number, level, digest, table, len(table), written)

    def _write_finished(
        self, schema: pa.Schema, chosen: pa.Array, objectives: Mapping[str, float]
    ) -> None:
        """Writes the finished table from the old one and the parts, then removes the parts."""
        folder, root = self._folder, self._folder.root
        parts = parts_of(root)
        files = list(read_tables(root, self._binding))
        keep = last_of_each_id(read_column("trial_id", files))
        written = np.concatenate([np.empty(0, np.int64), *(file.written for file in files)])[keep]
        draft = "trials.new"
        # Computed while the table is written: the whole table is never in memory.
        digest = ""

        def write(file: Any) -> None:
            nonlocal digest
            hashing = _Hashing(file)
            sink = pa.PythonFile(hashing, mode="w")
            with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
                writer.add_key_value_metadata(self._binding.metadata(written))
                for rows in _row_groups(files, schema, keep):
                    writer.write_table(_finished_rows(rows, chosen, objectives))
            digest = hashing.digest.hexdigest()

        folder.write(draft, write)
        # A kill before the rename leaves the old table, a kill after it the new one. Until the
        # rename is done, both digests are therefore valid.
        self._note_table([*self._binding.table, digest])
        files.clear()
        folder.rename(draft, TABLE)
        self._binding = self._note_table([digest])
        self._write_digests()
        folder.settle()
        # The parts go last: after a kill in between, their rows exist twice, and the later count.
        for part in parts:
            self._delete(part)

    def _write_digests(self) -> None:
        lines = "".join(f"{digest}  {TABLE}\n" for digest in self._binding.table)
        self._folder.write(DIGESTS, lines.encode())


def _finished_rows(rows: pa.Table, chosen: pa.Array, objectives: Mapping[str, float]) -> pa.Table:
    """Marks the chosen rows, and removes the states: a finished run deletes their files."""
    none = pa.nulls(len(rows), pa.string())
    columns = {
        "state_path": none,
        "state_sha256": none,
        "chosen": pc.is_in(rows["trial_id"], chosen),
    }
    if objectives:
        old = zip(rows["trial_id"].to_pylist(), rows["objective"].to_pylist(), strict=True)
        # Arrow keeps NaN apart from null, which stands for it in the log.
        columns["objective"] = pa.array(
            [objectives.get(name, value) for name, value in old], pa.float64(), from_pandas=True
        )
    for name, values in columns.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(name), values)
    return rows


def _row_groups(
    files: Sequence[TableFile], schema: pa.Schema, keep: NDArray[np.bool_]
) -> Iterator[pa.Table]:
    """Yields the rows to `keep` of all files, in tables of the size of a row group."""
    buffered: list[pa.Table] = []
    place = 0
    groups = (file.read_group(number) for file in files for number in range(len(file.group_sizes)))
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

    def __init__(self, file: Any) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def writable(self) -> bool:
        """Returns True."""
        return True

    def write(self, content: Any) -> int:
        """Writes and digests bytes."""
        self.digest.update(content)
        return int(self._file.write(content))

    def tell(self) -> int:
        """Returns how many bytes were written."""
        return int(self._file.tell())
