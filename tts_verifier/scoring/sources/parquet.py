"""Pictures and prompts of a Parquet file, read a few rows at a time.

A picture is a path, relative to the file's folder; or bytes; or, as in data sets of the Hugging
Face hub, a struct of `bytes` and `path`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from tts_verifier.errors import InputError, readable_name
from tts_verifier.loading.regular_files import open_regular, read_regular
from tts_verifier.log.storage.files import changed_at
from tts_verifier.scoring.sources.pairs import Pair, columns_of, pair_of, problem_of
from tts_verifier.tables import Row, is_plain

_TEXTS_AT_ONCE: Final = 1024
_PICTURES_AT_ONCE: Final = 8
_BUFFER: Final = 1 << 20
"""Bytes of a column that are read at once, instead of all of a row group."""
_BAD_PARQUET: Final = (pa.ArrowException, ValueError, KeyError, EOFError, OSError)
"""What reading a damaged file raises."""


class ParquetSource:
    """The pairs of a Parquet file; each iteration reads it anew.

    In place of the rest of a row group whose texts are damaged there is a pair that has the reason
    as its `error`.

    Args:
        path: of the file.
        prompt: for all images, where there is no column of prompts.
        image_column: as in `read_pairs`.
        prompt_column: as in `read_pairs`.

    Raises:
        InputError: it cannot be read, or has no such columns.
    """

    def __init__(
        self,
        path: Path,
        *,
        prompt: str | None,
        image_column: str | None,
        prompt_column: str | None,
    ) -> None:
        self._path, self._prompt, self._name = path, prompt, readable_name(path)
        with self._opened() as file:
            types = {f.name: f.type for f in file.schema_arrow if is_plain(f.type)}
            pictures = {f.name for f in file.schema_arrow if _holds_bytes(f.type)}
            rows = [Row(dict.fromkeys([*types, *pictures]))] if file.metadata.num_rows else []
            odd = [f for f in file.schema_arrow if f.name not in {*types, *pictures}]
        columns = {"image_column": image_column, "prompt_column": prompt_column}
        try:
            self._images, self._texts = columns_of(rows, self._name, prompt=prompt, **columns)
        except InputError as error:
            if not rows or not odd:
                raise
            listed = ", ".join(f"{field.name} ({field.type})" for field in odd)
            raise InputError(
                f"{error} These are neither texts, numbers nor pictures: {listed:.400}."
            ) from error
        self._bytes = next((name for name in self._images.columns if name in pictures), None)
        if bad := [name for name in self._texts.columns if name in pictures]:
            raise InputError(f"{self._name}: a column of prompts must be text, {bad[0]} is bytes.")

    @property
    def has_bytes(self) -> bool:
        """Whether pictures are inside the file."""
        return self._bytes is not None

    def __iter__(self) -> Iterator[Pair]:
        """Yields the pairs, in order; pictures inside the file are read when they are loaded."""
        try:
            yield from self._pairs()
        except InputError as error:
            yield Pair(self._name, "", str(error))

    def _pairs(self) -> Iterator[Pair]:
        columns = [*self._texts.columns, *self._images.columns]
        columns = [name for name in columns if name != self._bytes]
        with self._opened() as file, self._opened() as other:
            pictures = _Pictures(other, self._path.parent, self._bytes) if self._bytes else None
            about = self._path.stat()
            version = f"{about.st_size}.{changed_at(about)}"
            place, folder = str(self._path), self._path.parent
            for number, value in self._rows(file, columns):
                if isinstance(value, str):
                    yield Pair(self._name, "", value)
                elif pictures is not None:
                    load = partial(pictures.load, number - 1)
                    text = self._text(value, number)
                    # In place of `pair_of`: a continued call makes a million of these.
                    error = ""
                    if problem := problem_of(text):
                        error = f"The prompt of {self._row(value, number).place} {problem}."
                    yield Pair(f"{place}:{number}", readable_name(text), error, load, version)
                else:
                    row = self._row(value, number)
                    yield pair_of(
                        row, self._images, self._texts, folder=folder, prompt=self._prompt
                    )

    def _row(self, value: Mapping[str, Any], number: int) -> Row:
        return Row(value, f"{self._name}, row {number}")

    def _text(self, value: Mapping[str, Any], number: int) -> str:
        """Returns the prompt of a row whose picture is in the file."""
        if not self._texts.found:
            return self._prompt or ""
        text = value[self._texts.columns[0]]
        if type(text) is str:
            return text
        row = self._row(value, number)
        return self._texts.cell(row, row.place) or ""

    def _rows(
        self, file: pq.ParquetFile, columns: list[str]
    ) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
        """Yields the number of each row with its texts, or with why it and others have none."""
        if not columns:
            yield from ((number + 1, {}) for number in range(file.metadata.num_rows))
            return
        number = 0
        for group in range(file.num_row_groups):
            last = number + file.metadata.row_group(group).num_rows
            try:
                batches = file.iter_batches(_TEXTS_AT_ONCE, row_groups=[group], columns=columns)
                for batch in batches:
                    for value in batch.to_pylist():
                        number += 1
                        yield number, value
            except _BAD_PARQUET as error:
                # Pages are read one after the other; only the next group has a place of its own.
                lost = f"{self._name}, rows {number + 1} to {last} cannot be read: {error}"
                yield number + 1, lost
            number = last

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        try:
            file = open_regular(self._path)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self._name} cannot be read: {reason}.") from error
        with file:
            try:
                # Few writers add checksums; where there are some, no damage is taken for content.
                table = pq.ParquetFile(file, buffer_size=_BUFFER, page_checksum_verification=True)
            except _BAD_PARQUET as error:
                raise InputError(f"{self._name} must be a Parquet file: {error}") from error
            with table:
                yield table


class _Pictures:
    """The bytes of a column; rows are asked for in ascending order."""

    def __init__(self, file: pq.ParquetFile, folder: Path, column: str) -> None:
        self._file, self._folder, self._column = file, folder, column
        self._group = -1
        self._next_group = 0
        """The first row of the group after this one."""
        self._batch: pa.RecordBatch | None = None
        self._start = 0
        """The first row of the batch."""

    def load(self, row: int) -> bytes:
        """Returns the picture of a row.

        Raises:
            InputError: the row has none.
            OSError, ArrowException: it cannot be read.
        """
        while row >= self._next_group:
            # Groups without a picture that is asked for are not read.
            self._group += 1
            self._start = self._next_group
            self._next_group += self._file.metadata.row_group(self._group).num_rows
            self._batch = None
            self._batches = self._file.iter_batches(
                _PICTURES_AT_ONCE, row_groups=[self._group], columns=[self._column]
            )
        while self._batch is None or row >= self._start + len(self._batch):
            self._start += 0 if self._batch is None else len(self._batch)
            # First, lest its pictures be taken for those of a batch that cannot be read.
            self._batch = None
            if (batch := next(self._batches, None)) is None:
                raise InputError(f"row group {self._group} of the file is damaged")
            self._batch = batch
        value = self._batch.column(0)[row - self._start].as_py()
        if isinstance(value, dict):
            path = value.get("path")
            value = value["bytes"] or (path and read_regular(self._folder / path))
        if not value:
            raise InputError("there is no picture")
        return bytes(value)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        number = kind.get_field_index("bytes")
        # Where all pictures are paths, the type of their bytes is null.
        inner = kind.field(number).type if number >= 0 else pa.string()
        return _holds_bytes(inner) or bool(pa.types.is_null(inner))
    tests = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(test(kind) for test in tests)
