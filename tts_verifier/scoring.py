"""Scores image files, folders and globs against one prompt; `tts-score` is its command.

Scores are written as they come, one line of JSON per file, so a stopped command can continue.
Each line has a key: a hash of the file's bytes, the prompt and the verifier's settings. A file
that changed is therefore scored again, and an unchanged one is not. A Parquet file is written from
the lines at the end.
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
from tts_verifier.images import as_image, as_list
from tts_verifier.interfaces import Verifier
from tts_verifier.log.schema import finite
from tts_verifier.types import Detail
from tts_verifier.types.score_names import written_scores

ScoreRow = dict[str, Any]
"""One file: `image` (path), `objective`, each score under its name, `boxes` and `reply`.

None stands for NaN. A file that cannot be read has `error` instead of scores. Rows that were
written also have `key`.
"""

_NOT_SCORES: Final = ("image", "objective", "boxes", "reply", "key", "error")
_BATCH: Final = 8


def find_images(patterns: Sequence[str]) -> list[str]:
    """Finds image files, each once.

    Args:
        patterns: files, globs (`**` included), or folders, which are searched recursively for
            files with an image's suffix.

    Returns:
        Paths in the order of the patterns, and sorted by name within a pattern.

    Raises:
        InputError: a pattern matches nothing, or a folder holds no image.
    """
    files: dict[str, None] = {}
    for pattern in as_list(patterns, "patterns"):
        matches = _matches(pattern)
        if not matches:
            raise InputError(f"{pattern} has no image. Name files, folders or globs with some.")
        files |= dict.fromkeys(matches)
    return list(files)


def _matches(pattern: str) -> list[str]:
    if os.path.isdir(pattern):
        suffixes = set(Image.registered_extensions())
        below = (
            p for p in Path(pattern).rglob("*") if p.suffix.lower() in suffixes and p.is_file()
        )
        return sorted(map(str, below))
    # A name such as `a[1].png` looks like a glob, and may still be a file.
    if os.path.exists(pattern) or not glob.has_magic(pattern):
        return [pattern]
    return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))


def score_files(
    verifier: Verifier, paths: Sequence[str], prompt: str, *, detail: Detail = "diagnose"
) -> list[ScoreRow]:
    """Scores files and returns a row for each, best first.

    Args:
        verifier: scores the images, a few at a time.
        paths: image files.
        prompt: what the images should show.
        detail: "score" leaves out reasons, boxes and heatmaps.

    Raises:
        InputError: a file is no image, or the prompt is empty.
    """
    scorer, listed = FileScorer(verifier, prompt, detail), as_list(paths, "paths")
    return sorted_rows([row for batch in _batches(listed) for row in scorer.rows(batch)])


def score_into(
    output: Path,
    verifier: Verifier,
    paths: Sequence[str],
    *,
    prompt: str,
    detail: Detail = "diagnose",
) -> list[ScoreRow]:
    """Scores files into a .jsonl or .parquet file, and continues one that a stopped call left.

    A file that is not an image gets a row with its `error`. A .jsonl file keeps its rows of other
    files; of two rows for the same file the later one counts. Two calls must not write to the
    same output at once.

    Returns:
        A row for every path, best first.

    Raises:
        InputError: the output has another suffix, or the prompt is empty.
        RunError: the output cannot be read or written, or holds something else.
    """
    if output.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"Scores are written to a .jsonl or .parquet file, got {output}.")
    paths = as_list(paths, "paths")
    lines = output if output.suffix == ".jsonl" else output.with_name(f"{output.name}.lines")
    scorer = FileScorer(verifier, prompt, detail)
    try:
        rows = sorted_rows(_score_missing(lines, scorer, paths))
        if lines != output:
            # A reader never sees half a table.
            draft = output.with_name(f"{output.name}.draft")
            pq.write_table(_score_table(rows), draft)
            # The lines go last: a kill before that leaves both, and the next call starts from them.
            draft.replace(output)
            lines.unlink()
    except OSError as error:
        raise RunError(f"{output} cannot be written: {error.strerror or error}.") from error
    return rows


def _score_missing(lines: Path, scorer: FileScorer, paths: Sequence[str]) -> list[ScoreRow]:
    """Returns the rows of all paths; scores those that the lines lack and appends them."""
    recorded = _read_score_lines(lines)
    rows: list[ScoreRow] = []
    with open(lines, "ab") as file:
        for batch in _batches(paths):
            keys = {path: scorer.key(path) for path in batch}
            todo = [path for path in keys if keys[path] not in recorded]
            fresh = [
                {**row, "key": keys[path]}
                for path, row in zip(todo, scorer.rows_or_errors(todo), strict=True)
            ]
            file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in fresh)
            # A power cut then costs one batch, not what the system still buffers.
            file.flush()
            os.fsync(file.fileno())
            by_path = {row["image"]: row for row in fresh}
            # A recorded row may have been scored under another path of the same bytes.
            rows += [by_path.get(path) or {**recorded[keys[path]], "image": path} for path in batch]
    return rows


def _read_score_lines(lines: Path) -> dict[str, ScoreRow]:
    """Returns the rows by key; removes a last line that a kill cut short."""
    if not lines.exists():
        return {}
    content = lines.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        by_key = {row["key"]: row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{lines} must hold scores of this command, a line of JSON each: {error!r}. Give "
            "another --output."
        ) from error
    if len(whole) < len(content):
        os.truncate(lines, len(whole))
    return by_key


class FileScorer:
    """Scores files against one prompt; as safe to share between threads as its verifier."""

    def __init__(self, verifier: Verifier, prompt: str, detail: Detail) -> None:
        self._verifier, self._prompt, self._detail = verifier, prompt, detail
        self._settings = canonical([prompt, dict(verifier.settings), detail]).encode()

    def key(self, path: str) -> str:
        """Returns a hash of the file's bytes (its name if it is missing), prompt and settings."""
        try:
            content = Path(path).read_bytes()
        except OSError:
            # A file's name need not be valid Unicode.
            content = f"no file: {path}".encode("utf-8", "surrogateescape")
        # JSON text has no NUL, so the two parts cannot run into each other.
        return hashlib.sha256(self._settings + b"\0" + content).hexdigest()[:16]

    def rows(self, paths: Sequence[str]) -> list[ScoreRow]:
        """Returns a row for every file, in order.

        Raises:
            InputError: a file is no image.
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

    def rows_or_errors(self, paths: Sequence[str]) -> list[ScoreRow]:
        """Returns a row for every file, in order; a file that is not an image has an `error`."""
        errors: dict[str, ScoreRow] = {}
        for path in paths:
            try:
                as_image(path)
            except InputError as error:
                errors[path] = {"image": path, "objective": None, "error": str(error)}
        images = [path for path in paths if path not in errors]
        scored = dict(zip(images, self.rows(images), strict=True)) if images else {}
        return [errors.get(path) or scored[path] for path in paths]


def _batches(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(paths), _BATCH):
        yield paths[start : start + _BATCH]


def sorted_rows(rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """Returns the rows best first; rows without an objective come last."""
    values = [math.nan if row["objective"] is None else row["objective"] for row in rows]
    return [rows[i] for i in order(values)]


def _score_table(rows: Sequence[ScoreRow]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pa.table(columns)


def format_rows(rows: Sequence[ScoreRow], form: Literal["table", "jsonl"]) -> str:
    """Returns the rows as an aligned table, or as one line of JSON each, with null for NaN."""
    if form == "jsonl":
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    names = dict.fromkeys(
        name for row in rows for name in written_scores(row) if name not in _NOT_SCORES
    )
    lines = [["image", "objective", *names]]
    for row in rows:
        cells = [_cell(row.get(name)) for name in ("objective", *names)]
        lines.append([row["image"], *cells, *([row["error"]] if row.get("error") else [])])
    widths = [
        max(map(len, column))
        for column in zip(*(line[: len(lines[0])] for line in lines), strict=True)
    ]
    # The column of errors, which only some lines have, comes last and needs no padding.
    widths.append(0)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in lines
    )


def _cell(value: float | None) -> str:
    return "nan" if value is None else f"{value:.3f}"
