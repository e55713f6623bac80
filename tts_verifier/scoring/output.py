"""Writes scores into a .jsonl or .parquet file, and continues one that a stopped call left."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tts_verifier.errors import InputError, RunError, readable_name
from tts_verifier.interfaces import Verifier
from tts_verifier.loading.regular_files import read_regular, user_path
from tts_verifier.log.lock import FolderLock
from tts_verifier.scoring.pairs import Pair, pairs_of
from tts_verifier.scoring.rows import ScoreRow, sorted_rows
from tts_verifier.scoring.score import PairScorer, batches
from tts_verifier.types import Detail


def score_into(
    output: Path,
    verifier: Verifier,
    paths: Sequence[str],
    *,
    prompt: str,
    detail: Detail = "diagnose",
) -> list[ScoreRow]:
    """Scores files against one prompt into a .jsonl or .parquet file, or continues it.

    A file that is not an image gets a row with its `error`. A .jsonl file keeps its rows of other
    files; of two rows for the same file the later one counts.

    Args:
        output: `~` is the home folder.
        verifier: gives the scores.
        paths: of the images.
        prompt: of all of them.
        detail: what to ask for.

    Returns:
        A row for every path, best first.

    Raises:
        InputError: the output has another suffix, or the prompt is empty.
        RunError: the output cannot be read or written, holds something else, or another call
            writes it at the moment.
    """
    return _score_into(output, PairScorer(verifier, detail), pairs_of(paths, prompt))


def score_pairs_into(
    output: Path, verifier: Verifier, pairs: Sequence[Pair], *, detail: Detail = "diagnose"
) -> list[ScoreRow]:
    """Scores pairs into a file, as `score_into` does; rows have their `prompt`."""
    return _score_into(output, PairScorer(verifier, detail, prompts=True), pairs)


def _score_into(output: Path, scorer: PairScorer, pairs: Sequence[Pair]) -> list[ScoreRow]:
    output = user_path(output)
    if output.suffix not in (".jsonl", ".parquet"):
        raise InputError(
            f"Scores are written to a .jsonl or .parquet file, got {readable_name(output)}."
        )
    lines = output if output.suffix == ".jsonl" else output.with_name(f"{output.name}.lines")
    try:
        with _held(output):
            rows = sorted_rows(_score_missing(lines, scorer, pairs))
            if lines != output:
                # A reader never sees half a table.
                draft = output.with_name(f"{output.name}.draft")
                pq.write_table(_score_table(rows), draft)
                # The lines go last: a kill before that leaves both, and the next call starts from
                # them.
                draft.replace(output)
                lines.unlink()
    except OSError as error:
        raise RunError(
            f"{readable_name(output)} cannot be written: {error.strerror or error}."
        ) from error
    return rows


@contextmanager
def _held(output: Path) -> Iterator[None]:
    """Keeps other calls from writing the output; without that, each would append its rows."""
    place = Path(os.path.realpath(output))
    # The lock would make the folder.
    if not place.parent.is_dir():
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    try:
        lock = FolderLock(place.parent, f"{place.name}.lock")
    except RunError as error:
        raise RunError(f"Scores cannot be written to {readable_name(output)}: {error}") from error
    try:
        yield
    finally:
        lock.release()


def _score_missing(lines: Path, scorer: PairScorer, pairs: Sequence[Pair]) -> list[ScoreRow]:
    """Returns the rows of all pairs; scores those that the lines lack and appends them."""
    recorded, by_key = _read_score_lines(lines)
    rows: list[ScoreRow] = []
    with open(lines, "ab") as file:
        for batch in batches(pairs):
            keys = [scorer.key(pair) for pair in batch]
            todo = dict(zip(keys, batch, strict=True))
            todo = {key: pair for key, pair in todo.items() if key not in by_key}
            fresh = zip(todo, scorer.rows(list(todo.values())), strict=True)
            by_key |= {key: {**row, "key": key} for key, row in fresh}
            for pair, key in zip(batch, keys, strict=True):
                # The same bytes may have been scored under another path.
                named = scorer.named(pair)
                row = {**named, **by_key[key], **named}
                if (row["image"], key) not in recorded:
                    recorded.add((row["image"], key))
                    file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                rows.append(row)
            # A power cut then costs one batch, not what the system still buffers.
            file.flush()
            os.fsync(file.fileno())
    return rows


def _read_score_lines(lines: Path) -> tuple[set[tuple[str, str]], dict[str, ScoreRow]]:
    """Returns image and key of all rows, and the rows by key; removes a line that was cut short."""
    if not os.path.lexists(lines):
        return set(), {}
    content = read_regular(lines)
    whole = content[: content.rfind(b"\n") + 1]
    try:
        rows = [json.loads(line) for line in whole.split(b"\n") if line.strip()]
        recorded = {(str(row["image"]), str(row["key"])) for row in rows}
        by_key: dict[str, Any] = {row["key"]: row for row in rows}
        # Whatever else a row may lack, this is read of every one.
        _ = [row["objective"] for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(
            f"{readable_name(lines)} must hold scores of this command, a line of JSON each: "
            f"{error!r}. Give another --output."
        ) from error
    if len(whole) < len(content):
        os.truncate(lines, len(whole))
    return recorded, by_key


def _score_table(rows: Sequence[ScoreRow]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pa.table(columns)
