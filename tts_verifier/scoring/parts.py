"""Scores collections of any size into a folder of Parquet parts, and continues such a folder.

Rows are first appended to a hidden file of lines, a batch at a time; 4,096 of them become a part
`NUMBER-DIGEST.parquet`, which appears whole or not at all and is never changed. A kill therefore
costs the verdicts of one batch. Readers of Parquet take the folder as it is.

Each row has its `key`, a hash of the image's bytes, the prompt and the verifier's settings, and its
`stamp`, a hash of the place, the size and the last change of its file instead of its bytes. A
continued call skips what has a known stamp without reading it; what has a known key, such as a file
that was moved, gets its row without being judged again. What has an error is tried again. All this
takes 24 bytes a row in memory.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tts_verifier.errors import RunError, RunWarning, readable_name
from tts_verifier.interfaces import Verifier
from tts_verifier.loading.regular_files import output_path, read_regular
from tts_verifier.log.storage.files import changed_at
from tts_verifier.scoring.batches import Picture, batches
from tts_verifier.scoring.files import append_lines, read_lines, write_part
from tts_verifier.scoring.output import held
from tts_verifier.scoring.row_index import RowIndex
from tts_verifier.scoring.rows import ScoreRow, scores_of
from tts_verifier.scoring.score import PairScorer
from tts_verifier.scoring.sources.pairs import Pair
from tts_verifier.types import Detail

PART_ROWS: Final = 4096
_PART: Final = re.compile(r"(\d{8})-([0-9a-f]{16})\.parquet")
_FIRST: Final = {"image": pa.string(), "prompt": pa.string(), "objective": pa.float64()}
_LAST: Final = {
    "boxes": pa.list_(pa.list_(pa.float64())),
    "reply": pa.string(),
    "error": pa.string(),
    "key": pa.string(),
    "stamp": pa.uint64(),
}


def score_into_parts(
    folder: Path, verifier: Verifier, pairs: Iterable[Pair], *, detail: Detail = "diagnose"
) -> Parts:
    """Scores pairs into a folder of Parquet parts, or continues it; memory stays flat.

    The folder keeps its rows of other files; of two rows for the same file the later one counts.

    Args:
        folder: made if its parent exists; `~` is the home folder.
        verifier: gives the scores.
        pairs: taken one after the other.
        detail: what to ask for.

    Returns:
        The folder, whose `rows` are those of the pairs.

    Raises:
        RunError: the folder cannot be read or written, holds something else, or another call
            writes it at the moment.
    """
    with open_parts(folder, PairScorer(verifier, detail, prompts=True)) as parts:
        for batch in batches(parts.missing(pairs), parts.read, verifier):
            parts.add(batch)
    return parts


@contextmanager
def open_parts(folder: Path, scorer: PairScorer) -> Iterator[Parts]:
    """Holds a folder and opens its parts; at the end, rows that are in no part become one.

    Raises:
        RunError: as `score_into_parts`.
    """
    folder = output_path(folder)
    with held(folder):
        folder.mkdir(exist_ok=True)
        parts = Parts(folder, scorer)
        try:
            yield parts
        finally:
            # Also after Ctrl-C, so that readers find all rows.
            parts.flush()


class Parts:
    """The rows of a folder, and which of them a call asked for. One thread adds rows.

    Args:
        folder: exists, and is held by this process.
        scorer: makes the rows.

    Raises:
        RunError: the folder holds something else.
    """

    def __init__(self, folder: Path, scorer: PairScorer) -> None:
        self.folder, self._scorer = folder, scorer
        self._files: list[Path] = []
        self._starts: list[int] = []
        """Each file's first row, of all rows of the folder."""
        self._count = 0
        self._lines: list[ScoreRow] = []
        """Rows that are in no part yet; they follow those of the parts."""
        self._keys, self._stamps = RowIndex(), RowIndex()
        self._failed = RowIndex()
        """By key, the rows with an error; what they are about is tried again."""
        self._asked = bytearray()
        """1 for each row that this call asks for."""
        self._last: tuple[int, pa.Table] | None = None
        """Number and table of the part that was read last."""
        self._next = 0
        self._score_names = dict.fromkeys(scorer.verifier.score_names or ())
        self._open()

    def missing(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Yields the pairs whose files have no row yet, and asks for the rows of the others."""
        for pair in pairs:
            pair = _with_version(pair)
            row = self._stamps.get(self._scorer.stamp(pair))
            if row is None:
                yield pair
            else:
                self._asked[row] = 1

    def read(self, pair: Pair) -> Picture:
        """Reads a picture; one whose key is known is not decoded."""
        return self._scorer.read(pair, lambda key: self._row_of(key) is not None)

    def add(self, pictures: Sequence[Picture]) -> None:
        """Scores pictures, unless their keys are known, and writes their rows; see `write`."""
        fresh = self._scorer.rows_by_key(p for p in pictures if self._row_of(p.key) is None)
        self.write([(picture.pair, picture.key) for picture in pictures], fresh)

    def write(self, keyed: Iterable[tuple[Pair, str]], rows: Mapping[str, ScoreRow]) -> None:
        """Writes a row for each pair.

        Args:
            keyed: pairs with their keys.
            rows: by key; of a key that the folder knows, its own row counts.

        Raises:
            OSError: the rows cannot be written.
        """
        first = len(self._lines)
        for pair, key in keyed:
            stamp, place = self._scorer.stamp(pair), self._row_of(key)
            if self._stamps.get(stamp) is not None:
                # The pair was asked for twice before its first row was written.
                continue
            named = self._scorer.named(pair)
            row = {**(rows[key] if place is None else self._row(place)), **named, "stamp": stamp}
            if (same := self._same_row(row, place)) is not None:
                self._asked[same] = 1
                if "error" not in row:
                    self._stamps.add(stamp, same)
                continue
            self._note(row, self._count + len(self._lines))
            self._lines.append(row)
        if len(self._lines) > first:
            append_lines(self._lines_path, self._lines[first:])
        if len(self._lines) >= PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes the lines as a part; raises OSError if that fails."""
        if not self._lines:
            return
        self._score_names |= dict.fromkeys(n for row in self._lines for n in scores_of(row))
        content = io.BytesIO()
        pq.write_table(_table(self._lines, self._score_names), content, compression="zstd")
        digest = hashlib.sha256(content.getbuffer()).hexdigest()[:16]
        path = self.folder / f"{self._next:08d}-{digest}.parquet"
        write_part(path, content.getbuffer())
        # The lines go last; a kill before that leaves both, and the part counts.
        self._lines_path.unlink(missing_ok=True)
        self._append_file(path, len(self._lines))
        self._lines = []

    def rows(self, *, whole: bool = False) -> Iterator[ScoreRow]:
        """Yields the rows that the call asked for, in the order of the parts; call `flush` before.

        Args:
            whole: with boxes and replies, which take long to read.
        """
        left_out = ("stamp",) if whole else ("stamp", "boxes", "reply")
        for path, start in zip(self._files, self._starts, strict=True):
            with pq.ParquetFile(path) as file:
                names = [name for name in file.schema_arrow.names if name not in left_out]
                asked = self._asked[start : start + file.metadata.num_rows]
                if any(asked):
                    mask = pa.array(np.frombuffer(asked, np.bool_))
                    yield from map(_as_row, file.read(names).filter(mask).to_pylist())

    @property
    def _lines_path(self) -> Path:
        return self.folder / f".{self._next:08d}.jsonl"

    def _row_of(self, key: str) -> int | None:
        return self._keys.get(int(key, 16))

    def _row(self, place: int) -> ScoreRow:
        """Returns one row of the folder."""
        if place >= self._count:
            return self._lines[place - self._count]
        number = int(np.searchsorted(self._starts, place, "right")) - 1
        if self._last is None or self._last[0] != number:
            self._last = (number, pq.read_table(self._files[number]))
        return _as_row(self._last[1].slice(place - self._starts[number], 1).to_pylist()[0])

    def _same_row(self, row: ScoreRow, place: int | None) -> int | None:
        """Returns the place of a row that says the same: a file was touched, or fails again."""
        if place is None and "error" in row:
            place = self._failed.get(int(row["key"], 16))
        if place is None:
            return None
        found = self._row(place)
        same = all(found.get(name) == row.get(name) for name in ("image", "prompt", "error"))
        return place if same else None

    def _note(self, row: ScoreRow, place: int, *, asked: bool = True) -> None:
        # First, because another thread marks rows that the indexes name.
        self._asked.append(asked)
        if "error" in row:
            self._failed.add(int(row["key"], 16), place)
        else:
            self._keys.add(int(row["key"], 16), place)
            self._stamps.add(row["stamp"], place)

    def _append_file(self, path: Path, rows: int) -> None:
        self._files.append(path)
        self._starts.append(self._count)
        self._count += rows
        self._next = int(path.name[:8]) + 1

    def _open(self) -> None:
        """Reads the keys and stamps of all rows."""
        found: list[tuple[NDArray[Any], ...]] = []
        for path in sorted(self.folder.iterdir()):
            match = _PART.fullmatch(path.name)
            if match is None:
                if not path.name.startswith("."):
                    raise _not_ours(path)
            elif (part := _read_part(path, match[2])) is not None:
                found.append(part)
                self._append_file(path, len(part[0]))
        if found:
            keys, stamps, failed = map(np.concatenate, zip(*found, strict=True))
            found.clear()
            rows = np.arange(len(keys), dtype=np.uint32)
            self._keys.extend(keys[~failed], rows[~failed])
            self._stamps.extend(stamps[~failed], rows[~failed])
            self._failed.extend(keys[failed], rows[failed])
            self._asked = bytearray(self._count)
        self._lines = read_lines(self._lines_path)
        for i, row in enumerate(self._lines):
            try:
                if not 0 <= row["stamp"] < 2**64:
                    raise ValueError(row["stamp"])
                self._note(row, self._count + i, asked=False)
            except (KeyError, ValueError, TypeError) as error:
                raise _not_ours(self._lines_path) from error
        for path in self.folder.glob(".*.jsonl"):
            if path != self._lines_path:
                # Its rows became a part just before a kill.
                path.unlink()


def _with_version(pair: Pair) -> Pair:
    """Returns a pair with the state of its file, before the file is read."""
    if pair.error or pair.load is not None:
        return pair
    try:
        about = os.stat(pair.image)
    except (OSError, ValueError):
        return replace(pair, version="none")
    return replace(pair, version=f"{about.st_size}.{changed_at(about)}")


def _not_ours(path: Path) -> RunError:
    return RunError(
        f"A folder of scores holds their parts and nothing else, {readable_name(path.parent)} "
        f"has {readable_name(path.name)!r}. Give another --output."
    )


def _read_part(path: Path, digest: str) -> tuple[NDArray[Any], ...] | None:
    """Returns a part's keys and stamps, and which rows have an error.

    Returns:
        uint64 (n,), uint64 (n,) and bool (n,); None if the part was changed and is set aside.
    """
    content = read_regular(path)
    if hashlib.sha256(content).hexdigest()[:16] == digest:
        try:
            with pq.ParquetFile(pa.BufferReader(content)) as file:
                table = file.read(["key", "stamp", "error"])
            keys = bytes.fromhex("".join(table["key"].to_pylist()))
            numbers = np.frombuffer(keys, ">u8").astype(np.uint64).reshape(table.num_rows)
            stamps = table["stamp"].to_numpy().astype(np.uint64, casting="safe")
        # Whoever wrote it, this command did not.
        except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise _not_ours(path) from error
        return numbers, stamps, table["error"].is_valid().to_numpy()
    aside = path.with_name(f".changed-{path.name}")
    path.replace(aside)
    warnings.warn(
        f"{readable_name(path)} was changed since it was written. It is now {aside.name}, and its "
        "pictures are scored again.",
        RunWarning,
        stacklevel=2,
    )
    return None


def _table(rows: Sequence[ScoreRow], scores: Iterable[str]) -> pa.Table:
    # All parts have the same types, whatever is null in them: readers take those of the first.
    types = {**_FIRST, **dict.fromkeys(scores, pa.float64()), **_LAST}
    columns = [pa.array([row.get(name) for row in rows], kind) for name, kind in types.items()]
    return pa.table(columns, names=list(types))


def _as_row(row: ScoreRow) -> ScoreRow:
    """Returns a row as `PairScorer` makes it: without an error, or without what an error lacks."""
    if row["error"] is None:
        return {name: value for name, value in row.items() if name != "error"}
    return {k: v for k, v in row.items() if v is not None or k in ("prompt", "objective")}
