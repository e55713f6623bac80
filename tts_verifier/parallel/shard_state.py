"""What a shard's folder says about the attempts to run it, and the mark of a finished shard.

`attempt.json` exists while a process works on the shard. A process that finds it knows that an
earlier one died, where, and how often that has happened without a new row. After two such deaths
the prompts are tried one by one, and a prompt on which three processes die is given up. Fewer
would blame prompts for kills from outside that come one after the other.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from tts_verifier.choice.summary import PromptSummary
from tts_verifier.errors import RunError
from tts_verifier.loading.regular_files import open_regular
from tts_verifier.log.sharded import DONE
from tts_verifier.log.storage.files import Folder
from tts_verifier.log.storage.tables import TABLE, parts_of
from tts_verifier.runner.progress import ProgressCounts
from tts_verifier.runner.result import PromptResult
from tts_verifier.types import Pick, Prompt
from tts_verifier.types.paths import read_json_inside

NOTE: Final = "attempt.json"
PROGRESS: Final = "progress.json"
SHARED_DEATHS: Final = 2
"""Deaths without a new row until prompts are tried one by one."""
MOST_DEATHS: Final = 3
"""Deaths on one prompt alone until it is given up, or while parts are built until the run ends."""
_UNREADABLE: Final = (OSError, RunError, ValueError, TypeError, KeyError, RecursionError)


@dataclass(frozen=True, slots=True)
class AttemptNote:
    """How the attempts to run a shard have gone."""

    session: str
    """Of the coordinator: deaths under another one, which may have been killed itself, are no
    sign of anything."""
    stage: str = "build"
    """`build` while the parts are built, then `run`; "" once the process has ended in order."""
    deaths: int = 0
    """Processes that died one after the other without a new row."""
    build_deaths: int = 0
    """Processes that died one after the other while they built the parts."""
    rows: int = 0
    """Rows of the shard's tables when the note was written."""
    prompts: tuple[str, ...] = ()
    """Ids of the prompts under way, where they are tried one by one."""
    refused: dict[str, str] = field(default_factory=dict)
    """Prompt id -> why it was given up."""

    @property
    def one_by_one(self) -> bool:
        """Whether prompts are tried one by one, to find the one that ends its process."""
        return self.deaths >= SHARED_DEATHS

    def write(self, folder: Folder) -> None:
        """Writes the note into a shard's folder."""
        folder.write(NOTE, json.dumps(asdict(self)).encode(), flush=False)


def next_note(folder: Path, session: str, *, timeout: int | None = None) -> AttemptNote:
    """Returns the note of a process that begins to work on a shard.

    Args:
        folder: of the shard's attempt.
        session: the coordinator's.
        timeout: as in `ParallelOptions`; it may be what ended the earlier ones.

    Raises:
        RunError: process after process died while it built the parts.
    """
    old, rows = _read_note(folder), _count_rows(folder)
    if old is None or old.session != session or not old.stage:
        return AttemptNote(session, rows=rows, refused={} if old is None else old.refused)
    if old.stage == "build":
        note = replace(old, build_deaths=old.build_deaths + 1, rows=rows)
        if note.build_deaths >= MOST_DEATHS:
            raise RunError(
                f"{MOST_DEATHS} workers died one after the other while they built the generator "
                "and the verifier; their machine may lack memory. Give fewer workers, or smaller "
                "models; the same command goes on from there."
            )
        return note
    deaths = old.deaths + 1 if rows == old.rows else 1
    note = replace(old, stage="build", deaths=deaths, build_deaths=0, rows=rows, prompts=())
    if deaths >= SHARED_DEATHS + MOST_DEATHS and len(old.prompts) == 1:
        why = (
            f"{MOST_DEATHS} workers died on this prompt, one after the other and with no other "
            "prompt under way"
        )
        if timeout is not None:
            why += f"; parallel.timeout={timeout} ends workers too, is it too short for a batch?"
        return replace(note, deaths=0, refused={**old.refused, old.prompts[0]: why})
    return note


def write_done(folder: Folder, recipe: str, results: Iterable[PromptResult], counts: Any) -> None:
    """Writes the mark of a finished shard. Relative objectives are in its finished table.

    Args:
        folder: of the shard's attempt.
        recipe: the digest of the recipe.
        results: one for each prompt, in order.
        counts: the shard's `ProgressCounts`.
    """
    rows = [
        {
            "id": r.summary.prompt.id,
            "first": r.first,
            "chosen": r.chosen,
            "quick": r.quick,
            "ids": r.ids,
            "candidates": r.summary.candidates,
            "failed": r.summary.failed,
            "tied": r.summary.tied,
            "best": dict(r.summary.best),
        }
        for r in results
    ]
    done = {"recipe": recipe, "counts": counts_to_json(counts), "prompts": rows}
    folder.write(DONE, json.dumps(done).encode())
    folder.settle()


def read_done(folder: Path, recipe: str) -> dict[str, Any] | None:
    """Returns the mark of a shard that this recipe has finished, None if there is none."""
    try:
        done: dict[str, Any] = read_json_inside(folder, DONE)
        counts_from_json(done["counts"])
        return done if done["recipe"] == recipe and isinstance(done["prompts"], list) else None
    except _UNREADABLE:
        return None


def picked_in(done: dict[str, Any]) -> set[str]:
    """Returns the ids of all trials that `results_of` needs picks of."""
    names = ("first", "chosen", "quick")
    return {row[name] for row in done["prompts"] for name in names} - {""}


def results_of(
    done: dict[str, Any], prompts: Sequence[Prompt], picks: Mapping[str, Pick]
) -> list[PromptResult]:
    """Returns the results of a finished shard's prompts.

    Args:
        done: from `read_done`.
        prompts: of the shard.
        picks: of the trials that `picked_in` names; without them the summaries lack theirs.

    Raises:
        ValueError, KeyError, TypeError: the mark is not one that `write_done` wrote for them.
    """
    results = []
    for row, prompt in zip(done["prompts"], prompts, strict=True):
        if row["id"] != prompt.id:
            raise ValueError(f"it has {row['id']!r} in the place of {prompt.id!r}")
        first, chosen, quick, ids = (row[n] for n in ("first", "chosen", "quick", "ids"))
        if not all(isinstance(text, str) for text in (first, chosen, quick, ids)):
            raise TypeError("trials must be named by texts")
        summary = PromptSummary(
            prompt=prompt,
            first=picks.get(first),
            chosen=picks.get(chosen),
            quick=picks.get(quick),
            candidates=int(row["candidates"]),
            failed=int(row["failed"]),
            tied=bool(row["tied"]),
            best={str(name): float(value) for name, value in row["best"].items()},
        )
        results.append(PromptResult(summary, first, chosen, quick, ids, None))
    return results


def counts_to_json(counts: ProgressCounts) -> dict[str, Any]:
    """Returns counts as JSON values; None stands for NaN."""
    values = asdict(counts)
    return values | {"best": None if math.isnan(counts.best) else counts.best}


def counts_from_json(values: Any) -> ProgressCounts:
    """Reads what `counts_to_json` gave; ValueError, KeyError or TypeError for anything else."""
    best = values["best"]
    counts = ProgressCounts(**{**values, "best": math.nan if best is None else float(best)})
    # What is no number cannot be added.
    return counts + ProgressCounts()


def read_progress(folder: Path) -> ProgressCounts:
    """Returns what the process that works on a shard has counted, nothing if it does not say."""
    try:
        return counts_from_json(read_json_inside(folder, PROGRESS, most=2**16))
    except _UNREADABLE:
        return ProgressCounts()


def is_worked_on(folder: Path, session: str) -> bool:
    """Returns whether a process has begun a shard for this coordinator, and not ended in order."""
    note = _read_note(folder)
    return note is not None and note.session == session and note.stage != ""


def _read_note(folder: Path) -> AttemptNote | None:
    try:
        note = AttemptNote(**read_json_inside(folder, NOTE, most=2**26))
    except _UNREADABLE:
        return None
    numbers = (note.deaths, note.build_deaths, note.rows)
    kinds = isinstance(note.refused, dict) and isinstance(note.prompts, list)
    if not kinds or any(type(number) is not int for number in numbers):
        return None
    texts = (note.session, note.stage, *note.prompts, *note.refused, *note.refused.values())
    if not all(isinstance(text, str) for text in texts):
        return None
    return replace(note, prompts=tuple(note.prompts))


def _count_rows(folder: Path) -> int:
    """Returns the number of rows of a folder's tables, those that were merged twice included."""
    paths = [part.path for part in parts_of(folder)]
    if os.path.lexists(folder / TABLE):
        paths.append(folder / TABLE)
    try:
        return sum(_rows_in_file(path) for path in paths)
    # A damaged table is set aside later, and then says so.
    except Exception:
        return -1


def _rows_in_file(path: Path) -> int:
    with open_regular(path, links=False) as file:
        return int(pq.read_metadata(file).num_rows)
