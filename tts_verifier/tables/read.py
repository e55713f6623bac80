"""Reads the rows of a file, by its suffix.

- .txt: one text a line; blank lines are left out.
- .jsonl, .ndjson: a text or an object a line. .json: a list of those, an object of columns, an
  object of rows by their ids, or lines as in .jsonl.
- .csv: the first line names the columns; quotes as RFC 4180 has them. Where no comma separates
  them, semicolons, tabs and bars are tried.
- .tsv: as .csv, but a quotation mark that does not enclose a whole cell is part of the text, as in
  PartiPrompts.
- .parquet: columns of texts and numbers; others are not read.

Lines end at LF, CR or CR LF, and at nothing else that Unicode calls a line end. Text is UTF-8,
with or without a byte order mark.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import InputError, readable_name
from tts_verifier.loading.regular_files import open_regular, read_regular
from tts_verifier.tables.columns import IMAGE_ROLE, PROMPT_ROLE
from tts_verifier.tables.rows import Row

_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_TSV_CELL: Final = re.compile(r'"((?:[^"]++|"")*+)"(?=[\t\r\n]|\Z)|([^\t\r\n]*)')
_KNOWN: Final = {
    name for role in (PROMPT_ROLE, IMAGE_ROLE) for group in role.names for name in group
}
_Line = tuple[int, list[str]]
"""The number of a line and its cells."""


def read_table(path: Path) -> list[Row]:
    """Returns the rows of a file.

    Args:
        path: a file; the suffix, in any case, says what it is.

    Raises:
        InputError: the file cannot be read, or is not what its suffix says.
    """
    read = _READ_BY_SUFFIX.get(path.suffix.lower())
    if read is None:
        raise InputError(
            f"A table must be one of {', '.join(TABLE_SUFFIXES)}, got {readable_name(path)}."
        )
    try:
        return read(path, readable_name(path))
    except OSError as error:
        raise InputError(
            f"{readable_name(path)} cannot be read: {error.strerror or error}."
        ) from error


def _text(path: Path, name: str) -> str:
    content = read_regular(path)
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4]:
        raise InputError(f"{name} must be UTF-8, it is UTF-16 or UTF-32. Save it as UTF-8.")
    try:
        # Editors on Windows write a byte order mark, which "utf-8-sig" drops.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + len(_LINE_END.findall(content[: error.start].decode("latin-1")))
        raise InputError(
            f"{name}:{line} must be UTF-8: {error.reason} ({content[error.start]:#04x}). Save the "
            "file as UTF-8."
        ) from error


def _read_txt(path: Path, name: str) -> list[Row]:
    return [Row(line.strip(), f"{name}:{i}") for i, line in _lines(_text(path, name))]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return ((i, line) for i, line in enumerate(_LINE_END.split(text), 1) if line.strip())


# -- JSON ------------------------------------------------------------------------------------


def _read_json_lines(path: Path, name: str) -> list[Row]:
    return _json_rows(_text(path, name), name)


def _json_rows(text: str, name: str) -> list[Row]:
    return [Row(_parsed(line, f"{name}:{i}"), f"{name}:{i}") for i, line in _lines(text)]


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} must be JSON: {error}.") from error


def _read_json(path: Path, name: str) -> list[Row]:
    text = _text(path, name)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        # Lines of JSON under the wrong suffix are common.
        if error.msg == "Extra data":
            return _json_rows(text, name)
        raise InputError(f"{name}:{error.lineno} must be JSON: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} must be JSON: {error}.") from error
    entries = _entries(value)
    if entries is None:
        raise InputError(
            f"{name} must hold a list of texts or objects, an object of columns, or an object of "
            f"rows by their ids, got {type(value).__name__}."
        )
    return [Row(entry, f"{name}, entry {i}") for i, entry in enumerate(entries, 1)]


def _entries(value: Any) -> list[Any] | None:
    """Returns the rows of a JSON value, None if it has no form that is known."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not value:
        return None
    inner = list(value.values())
    if (
        len(inner) == 1
        and isinstance(inner[0], list)
        and all(isinstance(x, dict) for x in inner[0])
    ):
        return inner[0]
    named = any(key.strip().casefold() in _KNOWN for key in value)
    if all(isinstance(cells, list) for cells in inner):
        length = max(map(len, inner))
        columns = {k: cells + [None] * (length - len(cells)) for k, cells in value.items()}
        return [{k: cells[i] for k, cells in columns.items()} for i in range(length)]
    if all(isinstance(cells, dict) for cells in inner):
        # pandas writes columns by default: {"prompt": {"0": ..., "1": ...}}.
        if named:
            keys = dict.fromkeys(key for cells in inner for key in cells)
            return [{k: cells.get(key) for k, cells in value.items()} for key in keys]
        return [{"id": key, **row} for key, row in value.items()]
    return [value] if named else None


# -- CSV and TSV -----------------------------------------------------------------------------


def _read_csv(path: Path, name: str) -> list[Row]:
    text = _text(path, name)
    for delimiter in ",;\t|":
        lines = _csv_lines(text, delimiter, name)
        header = next(lines, (1, []))
        if any(cell.strip().casefold() in _KNOWN for cell in header[1]):
            return _table_rows(header, lines, name)
    # No usual name: the caller, which knows the columns asked for, reports it and lists them.
    lines = _csv_lines(text, ",", name)
    return _table_rows(next(lines, (1, [])), lines, name)


def _csv_lines(text: str, delimiter: str, name: str) -> Iterator[_Line]:
    # `newline=""` keeps line ends inside of quotes as they are.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{name}:{number} must be CSV: {error}. A cell with quotation marks, commas or "
                'line ends stands in quotation marks, and marks inside are doubled: "a ""b""".'
            ) from error
        if any(cell.strip() for cell in cells):
            yield number, cells
        number = reader.line_num + 1


def _read_tsv(path: Path, name: str) -> list[Row]:
    lines = _tsv_lines(_text(path, name))
    return _table_rows(next(lines, (1, [])), lines, name)


def _tsv_lines(text: str) -> Iterator[_Line]:
    position, number, cells = 0, 1, list[str]()
    while position <= len(text):
        match = _TSV_CELL.match(text, position)
        assert match is not None
        quoted, plain = match.groups()
        cells.append(plain if quoted is None else quoted.replace('""', '"'))
        position = match.end()
        if text[position : position + 1] == "\t":
            position += 1
            continue
        end = _LINE_END.match(text, position)
        if any(cell.strip() for cell in cells):
            yield number, cells
        number += 1 + sum(len(_LINE_END.findall(cell)) for cell in cells)
        cells = []
        position = end.end() if end else len(text) + 1


def _table_rows(header: _Line, lines: Iterator[_Line], name: str) -> list[Row]:
    names = [cell.strip() for cell in header[1]]
    twice = sorted({n for n in names if n and names.count(n) > 1})
    if twice:
        raise InputError(f"{name}:{header[0]} names two columns {twice[0]!r}. Rename one.")
    rows = []
    for number, cells in lines:
        if any(cell.strip() for cell in cells[len(names) :]):
            raise InputError(
                f"{name}:{number} has {len(cells)} cells, the first line names {len(names)} "
                "columns. Put a cell with commas or tabs in quotation marks."
            )
        # A line may end early; then its last columns are absent.
        rows.append(Row(dict(zip(names, cells, strict=False)), f"{name}:{number}"))
    return rows


# -- Parquet ---------------------------------------------------------------------------------


def is_plain(kind: Any) -> bool:
    """Returns whether a column of an Arrow type holds texts or numbers, as rows may."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return is_plain(kind.value_type)
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_null,
    )
    return any(test(kind) for test in tests)


def _read_parquet(path: Path, name: str) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_regular(path) as file, pq.ParquetFile(file) as table:
            names = [f.name for f in table.schema_arrow if is_plain(f.type)]
            rows = table.read(columns=names).to_pylist()
    # Besides its own errors, Arrow raises OSError on a damaged page.
    except (pa.ArrowException, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{name} must be a Parquet file: {error}") from error
    return [Row(row, f"{name}, row {i}") for i, row in enumerate(rows, 1)]


_READ_BY_SUFFIX: Final[Mapping[str, Callable[[Path, str], list[Row]]]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}
TABLE_SUFFIXES: Final = tuple(_READ_BY_SUFFIX)
"""The suffixes of files that `read_table` reads, in lower case."""
