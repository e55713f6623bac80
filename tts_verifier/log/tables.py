"""The tables of a run folder: many small parts while it runs, one table when it has finished.

A part's name is `NUMBER.LEVEL.DIGEST.parquet`. Every judged batch is a part of level 0; when
`FANOUT` parts of a level are there, or enough rows, they are merged into one of the next (as in a
log-structured merge tree, O'Neil et al. 1996), so that a million rows are some hundred files.
The digest, 16 hex digits of the file's SHA-256, tells a torn or foreign file. The finished
table has its digest in `trials.sha256`, which is written first and keeps the one before.

Where two rows have the same trial id the later one counts: a kill between a merge and the
removal of what was merged leaves equal rows, a trial drawn again leaves a better one.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tts_verifier.errors import RunError
from tts_verifier.log.files import Folder, digest_of

TABLE: Final = "trials.parquet"
PARTS: Final = "parts"
FANOUT: Final = 64
_LAST_LEVEL: Final = 2
_SUMS: Final = "trials.sha256"
_ROW_GROUP: Final = 4096
_MOST_ROWS: Final = 16 * _ROW_GROUP
"""Parts of as many rows together are merged however few they are, to keep memory flat."""
_LARGE: Final = 2**22
"""Bytes above which a file's rows are read from the disk when they are asked for."""
_NEEDED: Final = {"trial_id", "prompt_id", "proposal", "image_path", "mask_path"}
_NAME: Final = re.compile(r"(\d{8,})(?:\.(\d)\.([0-9a-f]{16}))?\.parquet")


@dataclass(frozen=True, slots=True)
class Part:
    """A part's file; `digest` is empty for one whose name does not say it.

    `table`: what was just written, so that small parts need not be read to be merged; `rows`
    of a part that this process wrote, else 0.
    """

    path: Path
    number: int
    level: int = 0
    digest: str = ""
    table: pa.Table | None = None
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Read:
    """A table's file that was checked, its rows still in it; `written`: when, in nanoseconds."""

    file: pq.ParquetFile
    written: int

    @property
    def groups(self) -> list[int]:
        """How many rows each row group has."""
        about = self.file.metadata
        return [about.row_group(number).num_rows for number in range(about.num_row_groups)]


def parts_of(folder: Path) -> list[Part]:
    """Returns the parts of a run folder in the order in which they were written."""
    found = []
    for path in (folder / PARTS).glob("*.parquet"):
        if match := _NAME.fullmatch(path.name):
            number, level, digest = match.groups()
            found.append(Part(path, int(number), int(level or 0), digest or ""))
    return sorted(found, key=lambda part: (part.number, -part.level))


def strangers(folder: Path) -> list[Path]:
    """Returns what lies among the parts and is none."""
    here = (folder / PARTS).glob("*")
    return sorted(path for path in here if not _NAME.fullmatch(path.name))


def read_tables(folder: Path, damaged: Callable[[Path, str], None] | None = None) -> Iterator[Read]:
    """Yields the finished table, if there is one, then the parts.

    Args:
        folder: the run's.
        damaged: is told of a file that cannot be used, and why; None raises instead.

    Raises:
        RunError: a file is damaged.
        FileNotFoundError: a part was merged since the folder was listed.
    """
    todo: list[tuple[Path, Iterable[str]]] = [(p.path, (p.digest,)) for p in parts_of(folder)]
    if (folder / TABLE).exists():
        todo.insert(0, (folder / TABLE, _sums(folder)))
    for path, digests in todo:
        try:
            yield _load(path, digests)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException, ValueError) as error:
            if damaged is None:
                raise RunError(
                    f"{path} is damaged ({error}). The command that made the run sets it aside "
                    "and draws its rows again."
                ) from error
            damaged(path, str(error))


def read_table(folder: Path) -> pa.Table | None:
    """Returns all rows, the later one of two with the same id, or None without a table.

    Raises:
        RunError: a file is damaged.
    """
    while True:
        try:
            tables = [read.file.read() for read in read_tables(folder)]
        except FileNotFoundError:
            # A live run has merged parts meanwhile: look again.
            continue
        break
    if not tables:
        return None
    table = pa.concat_tables(tables, promote_options="permissive")
    keep = _counting(table["trial_id"])
    return table if keep.all() else table.filter(pa.array(keep))


def read_column(name: str, reads: Iterable[Read]) -> pa.ChunkedArray:
    """Returns a column of strings, the rows of all these files one after another."""
    pieces = [read.file.read(columns=[name])[name] for read in reads]
    return pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks], pa.string())


def write_part(folder: Folder, part: tuple[int, int], table: pa.Table) -> Part:
    """Writes a part of this (number, level)."""
    number, level = part
    buffer = io.BytesIO()
    # Statistics and dictionaries pay off for many rows only.
    pq.write_table(
        table,
        buffer,
        row_group_size=_ROW_GROUP,
        compression="zstd",
        write_statistics=level > 0,
        use_dictionary=level > 0,
    )
    content = buffer.getvalue()
    digest = digest_of(content)[:16]
    name = f"{PARTS}/{number:08d}.{level}.{digest}.parquet"
    folder.write(name, content)
    return Part(folder.root / name, number, level, digest, None if level else table, len(table))


def merge(folder: Folder, parts: list[Part]) -> list[Part]:
    """Merges parts of a level where there are `FANOUT` or many rows; returns what is left."""
    for level in range(_LAST_LEVEL):
        same = [part for part in parts if part.level == level]
        if len(same) < FANOUT and sum(part.rows for part in same) < _MOST_ROWS:
            return parts
        if len(same) < 2:
            continue
        tables = [
            _load(part.path, (part.digest,)).file.read() if part.table is None else part.table
            for part in same
        ]
        table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        merged = write_part(folder, (same[-1].number, level + 1), table)
        folder.settle()
        for part in same:
            part.path.unlink()
        parts = [part for part in parts if part.level != level] + [merged]
    return parts


def finish(
    folder: Folder, schema: pa.Schema, columns: Callable[[pa.Table], Mapping[str, pa.Array]]
) -> None:
    """Writes the finished table from all there is, piece by piece, then removes the parts.

    Args:
        folder: the run's.
        schema: of the finished table.
        columns: a piece of the table -> columns to replace in it.
    """
    parts = parts_of(folder.root)
    keep = _counting(read_column("trial_id", read_tables(folder.root)))
    draft = "trials.new"
    digest = hashlib.sha256()

    def write(file: Any) -> None:
        sink = pa.PythonFile(_Hashing(file, digest), mode="w")
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for piece in _pieces(folder.root, schema, keep):
                for name, values in columns(piece).items():
                    place = piece.schema.get_field_index(name)
                    piece = piece.set_column(place, piece.schema.field(name), values)
                writer.write_table(piece)

    folder.write(draft, write)
    # A kill before the rename must leave the old table's digest valid, one after it the new's.
    lines = [*_sums(folder.root), digest.hexdigest()]
    folder.write(_SUMS, "".join(f"{line}  {TABLE}\n" for line in lines).encode())
    folder.settle()
    (folder.root / draft).replace(folder.root / TABLE)
    folder.write(_SUMS, f"{digest.hexdigest()}  {TABLE}\n".encode())
    folder.settle()
    for part in parts:
        part.path.unlink()


def chosen_of(folder: Path) -> set[str] | None:
    """Returns which trials the finished table says were chosen, None without a table."""
    if not (folder / TABLE).exists():
        return None
    table = pq.read_table(folder / TABLE, columns=["trial_id", "chosen"])
    return set(table.filter(table["chosen"])["trial_id"].to_pylist())


def _pieces(folder: Path, schema: pa.Schema, keep: NDArray[np.bool_]) -> Iterator[pa.Table]:
    """Yields all rows that count, as tables of a row group's size; `keep` says which do."""
    waiting: list[pa.Table] = []
    place = 0
    groups = (
        read.file.read_row_group(number)
        for read in read_tables(folder)
        for number in range(read.file.num_row_groups)
    )
    for group in groups:
        table = conform(group, schema)
        waiting.append(table.filter(pa.array(keep[place : place + len(table)])))
        place += len(table)
        if sum(map(len, waiting)) >= _ROW_GROUP:
            whole = pa.concat_tables(waiting)
            full = len(whole) // _ROW_GROUP * _ROW_GROUP
            for start in range(0, full, _ROW_GROUP):
                yield whole.slice(start, _ROW_GROUP).combine_chunks()
            waiting = [whole.slice(full)]
    rest = pa.concat_tables(waiting) if waiting else schema.empty_table()
    if len(rest):
        yield rest.combine_chunks()


def _counting(ids: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Returns which rows count, given their trial ids: False where a later one has the same."""
    names = ids.combine_chunks()
    # To sort, which keeps the order of equal ones, takes a fifth of a hash table's memory.
    places = pc.sort_indices(names)
    names = names.take(places)
    again = pc.equal(names[:-1], names[1:]).to_numpy(zero_copy_only=False)
    keep = np.ones(len(ids), np.bool_)
    keep[places.to_numpy()[:-1][again]] = False
    return keep


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns the table with the schema's columns, null where it has none."""
    columns = [
        table[f.name] if f.name in table.column_names else pa.nulls(len(table), f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)


def _sums(folder: Path) -> list[str]:
    """Returns the digests that the finished table may have; none = it is not checked."""
    try:
        lines = (folder / _SUMS).read_text("ascii").splitlines()
    except OSError:
        return []
    return [line.split()[0] for line in lines if line.strip()]


def _load(path: Path, digests: Iterable[str]) -> Read:
    about = path.stat()
    large = about.st_size > _LARGE
    content = pa.OSFile(str(path)) if large else pa.BufferReader(path.read_bytes())
    wanted = [digest for digest in digests if digest]
    digest = hashlib.file_digest(content, "sha256").hexdigest()
    if wanted and not digest.startswith(tuple(wanted)):
        raise ValueError("its SHA-256 is not the one noted")
    content.seek(0)
    file = pq.ParquetFile(content)
    if missing := _NEEDED - set(file.schema_arrow.names):
        raise ValueError(f"it has no column {min(missing)}")
    if not wanted:
        file.read()
    return Read(file, about.st_mtime_ns)


class _Hashing(io.RawIOBase):
    """A binary file that digests what is written through it."""

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
        """Returns how much was written."""
        return int(self._file.tell())
