"""Files, folders and globs against one prompt: what `tts-score` does.

Scores go to a file as they come, a line of JSON each, so that a stopped command continues. A
line has a key of the file's bytes, the prompt and the verifier: a picture that changed is
scored again, one that did not is not. A Parquet file is made of the lines at the end.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tts_verifier.choice.objective import order
from tts_verifier.errors import InputError, RunError
from tts_verifier.identity import canonical
from tts_verifier.images import as_image
from tts_verifier.interfaces import Verifier
from tts_verifier.log.schema import finite
from tts_verifier.types import Detail
from tts_verifier.types.score_names import written_scores

Row = dict[str, Any]
"""`image` (path), `objective`, the scores by name, `boxes`, `reply`; None = not known. In a
file also `key`, and `error` where there is no verdict."""

_OTHERS: Final = ("image", "objective", "boxes", "reply", "key", "error")
_BATCH: Final = 8


def find_images(patterns: Sequence[str]) -> list[str]:
    """Returns the files that are named, match a glob, or lie in a folder and below, each once.

    In folders only files with an image's suffix count; the order is that of the patterns,
    sorted by name within each.

    Raises:
        InputError: a pattern matches nothing, or a folder has no image.
    """
    suffixes = set(Image.registered_extensions())
    found: dict[str, None] = {}
    for pattern in patterns:
        if os.path.isdir(pattern):
            some = sorted(
                str(path)
                for path in Path(pattern).rglob("*")
                if path.suffix.lower() in suffixes and path.is_file()
            )
        elif os.path.exists(pattern) or not glob.has_magic(pattern):
            some = [pattern]
        else:
            some = sorted(
                path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)
            )
        if not some:
            raise InputError(f"{pattern} has no image. Name files, folders or globs with some.")
        found |= dict.fromkeys(some)
    return list(found)


def score_files(
    verifier: Verifier, paths: Sequence[str], prompt: str, *, detail: Detail = "diagnose"
) -> list[Row]:
    """Returns a row for every file, best first.

    Raises:
        InputError: a file is no picture, or the prompt is empty.
    """
    judging = Judging(verifier, prompt, detail)
    return sorted_rows([row for some in _batches(paths) for row in judging.rows(some)])


def score_into(
    output: Path,
    verifier: Verifier,
    paths: Sequence[str],
    *,
    prompt: str,
    detail: Detail = "diagnose",
) -> list[Row]:
    """Scores files into a .jsonl or .parquet file, continuing what it holds.

    A file that is no picture is a row with its `error`. In a .jsonl file rows of other
    files stay, and of two rows for the same file the later one counts.

    Returns:
        A row for every path, best first.

    Raises:
        InputError: the output's name ends otherwise, or the prompt is empty.
        RunError: the output cannot be read or written, or holds something else.
    """
    if output.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"Scores are written to a .jsonl or .parquet file, got {output}.")
    lines = output if output.suffix == ".jsonl" else output.with_name(f"{output.name}.lines")
    judging = Judging(verifier, prompt, detail)
    try:
        rows = sorted_rows(_continued(lines, judging, paths))
        if lines != output:
            draft = output.with_name(f"{output.name}.draft")
            pq.write_table(_table(rows), draft)
            draft.replace(output)
            lines.unlink()
    except OSError as error:
        raise RunError(f"{output} cannot be written: {error.strerror or error}.") from error
    return rows


def _continued(lines: Path, judging: Judging, paths: Sequence[str]) -> list[Row]:
    """Returns the rows of all paths; those that are not among the lines are added to them."""
    done = _read(lines)
    rows: list[Row] = []
    with open(lines, "ab") as file:
        for some in _batches(paths):
            keys = {path: judging.key(path) for path in some}
            known = {
                path: {**done[key], "image": path} for path, key in keys.items() if key in done
            }
            todo = [path for path in some if path not in known]
            made = dict(zip(todo, judging.rows_or_errors(todo), strict=True))
            for path, row in made.items():
                file.write(
                    json.dumps({**row, "key": keys[path]}, ensure_ascii=False).encode() + b"\n"
                )
            file.flush()
            os.fsync(file.fileno())
            rows += [known.get(path) or {**made[path], "key": keys[path]} for path in some]
    return rows


def _read(lines: Path) -> dict[str, Row]:
    """Returns rows by key; a last line that a kill cut off is removed."""
    if not lines.exists():
        return {}
    content = lines.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        found = {row["key"]: row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{lines} must hold scores of this command, a line of JSON each: {error!r}. Give "
            "another --output."
        ) from error
    if len(whole) < len(content):
        os.truncate(lines, len(whole))
    return found


class Judging:
    """Judges files against one prompt."""

    def __init__(self, verifier: Verifier, prompt: str, detail: Detail) -> None:
        self._verifier, self._prompt, self._detail = verifier, prompt, detail
        self._about = canonical([prompt, dict(verifier.settings), detail]).encode()

    def key(self, path: str) -> str:
        """Returns what tells this judgement from others; of a file that is not there, its name."""
        try:
            content = Path(path).read_bytes()
        except OSError:
            content = f"no file: {path}".encode("utf-8", "surrogateescape")
        return hashlib.sha256(self._about + b"\0" + content).hexdigest()[:16]

    def rows(self, paths: Sequence[str]) -> list[Row]:
        """Returns a row for every file.

        Raises:
            InputError: a file is no picture.
        """
        verdicts = self._verifier.verify(paths, [self._prompt] * len(paths), detail=self._detail)
        return [
            {
                "image": path,
                "objective": finite(self._verifier.objective(verdict.scores)),
                **{name: finite(value) for name, value in verdict.scores.items()},
                "boxes": verdict.boxes,
                "reply": verdict.text,
            }
            for path, verdict in zip(paths, verdicts, strict=True)
        ]

    def rows_or_errors(self, paths: Sequence[str]) -> list[Row]:
        """Returns a row for every file, with an `error` for one that is no picture."""
        errors: dict[str, Row] = {}
        for path in paths:
            try:
                as_image(path)
            except InputError as error:
                errors[path] = {"image": path, "objective": None, "error": str(error)}
        good = [path for path in paths if path not in errors]
        made = dict(zip(good, self.rows(good), strict=True)) if good else {}
        return [errors.get(path) or made[path] for path in paths]


def _batches(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(paths), _BATCH):
        yield paths[start : start + _BATCH]


def sorted_rows(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows best first; one without an objective comes last."""
    values = [math.nan if row["objective"] is None else row["objective"] for row in rows]
    return [rows[i] for i in order(values)]


def _table(rows: Sequence[Row]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pa.table(columns)


def show(rows: Sequence[Row], form: Literal["table", "jsonl"]) -> str:
    """Returns a table, or one line of JSON a file (a number that is NaN is null there)."""
    if form == "jsonl":
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    names = dict.fromkeys(
        name for row in rows for name in written_scores(row) if name not in _OTHERS
    )
    lines = [["image", "objective", *names]]
    for row in rows:
        cells = [_cell(row.get(name)) for name in ("objective", *names)]
        lines.append([row["image"], *cells, *([row["error"]] if row.get("error") else [])])
    widths = [
        max(map(len, column))
        for column in zip(*(line[: len(lines[0])] for line in lines), strict=True)
    ]
    widths.append(0)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in lines
    )


def _cell(value: float | None) -> str:
    return "nan" if value is None else f"{value:.3f}"
