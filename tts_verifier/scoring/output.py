"""Writes scores into a .jsonl or .parquet file, and continues one that a stopped call left."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tts_verifier.errors import InputError, RunError, readable_name
from tts_verifier.interfaces import Verifier
from tts_verifier.loading.regular_files import open_regular, output_path
from tts_verifier.log.lock import FolderLock
from tts_verifier.scoring.batches import batches
from tts_verifier.scoring.files import append_lines, read_lines
from tts_verifier.scoring.rows import ScoreRow, sorted_rows
from tts_verifier.scoring.score import PairScorer
from tts_verifier.scoring.sources.pairs import Pair, pairs_of
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
    files; of two rows for the same file the later one counts. All rows are in memory: for a
    million of them, see `score_into_parts`.

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
    output: Path,
    verifier: Verifier,
    pairs: Iterable[Pair],
    *,
    detail: Detail = "diagnose",
    prompts: bool = True,
) -> list[ScoreRow]:
    """Scores pairs into a file, as `score_into` does; with `prompts`, rows have their `prompt`."""
    return _score_into(output, PairScorer(verifier, detail, prompts=prompts), pairs)


def _score_into(output: Path, scorer: PairScorer, pairs: Iterable[Pair]) -> list[ScoreRow]:
    output = output_path(output)
    if output.suffix not in (".jsonl", ".parquet"):
        raise InputError(
            "Scores are written to a .jsonl or .parquet file, or to a folder, got "
            f"{readable_name(output)}. A folder with a dot in its name must be there already."
        )
    lines = output if output.suffix == ".jsonl" else output.with_name(f"{output.name}.lines")
    with held(output):
        if lines != output and os.path.lexists(output):
            _check_replaceable(output)
        rows = sorted_rows(_score_missing(lines, scorer, pairs))
        if lines != output:
            # A reader never sees half a table.
            draft = output.with_name(f"{output.name}.draft")
            pq.write_table(_score_table(rows), draft)
            # The lines go last: a kill before that leaves both, and the next call starts from
            # them.
            draft.replace(output)
            lines.unlink()
    return rows


def _check_replaceable(output: Path) -> None:
    """Raises RunError unless a table that is to be replaced holds scores: it may be the input."""
    try:
        with open_regular(output) as file:
            if not os.fstat(file.fileno()).st_size:
                # As `mktemp` makes it.
                return
            names = set(pq.read_schema(file).names)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise RunError(
            f"{readable_name(output)} is there and must be a table of scores: {error}. Give "
            "another --output."
        ) from error
    if missing := {"image", "objective", "key"} - names:
        raise RunError(
            f"{readable_name(output)} is there and must be a table of scores, it has no column "
            f"{min(missing)!r}. Give another --output."
        )


@contextmanager
def held(output: Path) -> Iterator[None]:
    """Keeps other calls from writing the output; without that, each would append its rows.

    Raises:
        RunError: another call writes it, or something inside cannot be written.
    """
    place = Path(os.path.realpath(output))
    try:
        # The lock would make the folder.
        if not place.parent.is_dir():
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            lock = FolderLock(place.parent, f"{place.name}.lock")
        except RunError as error:
            name = readable_name(output)
            raise RunError(f"Scores cannot be written to {name}: {error}") from error
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        raise RunError(
            f"{readable_name(output)} cannot be written: {error.strerror or error}."
        ) from error


def _score_missing(lines: Path, scorer: PairScorer, pairs: Iterable[Pair]) -> list[ScoreRow]:
    """Returns the rows of all pairs; scores those that the lines lack and appends them.

    What has an error is tried again.
    """
    found = read_lines(lines)
    # Image, key and error: what failed again as before has its row already.
    recorded = {(str(row["image"]), row["key"], row.get("error")) for row in found}
    by_key = {row["key"]: row for row in found if "error" not in row}
    rows: list[ScoreRow] = []
    append_lines(lines, ())
    for batch in batches(pairs, partial(scorer.read, known=by_key.__contains__), scorer.verifier):
        by_key |= scorer.rows_by_key(p for p in batch if p.key not in by_key)
        new: list[ScoreRow] = []
        for picture in batch:
            # The same bytes may have been scored under another path.
            named = scorer.named(picture.pair)
            row = {**named, **by_key[picture.key], **named}
            about = (row["image"], picture.key, row.get("error"))
            if about not in recorded:
                recorded.add(about)
                new.append(row)
            rows.append(row)
        append_lines(lines, new)
    return rows


def _score_table(rows: Sequence[ScoreRow]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pa.table(columns)
