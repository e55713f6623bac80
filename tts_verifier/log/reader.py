"""Rows of a run folder as trials: all of them for a reader, one at a time for the runner.

A row counts only with its files. Who continues a run finds those that are gone or changed
missing, so that they are drawn again. A file is digested when it is newer than the table
that names it, and always when it is looked at.
"""

from __future__ import annotations

import math
import os
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tts_verifier.choice.objective import Pick
from tts_verifier.errors import RunError, RunWarning
from tts_verifier.identity import proposal_from_json
from tts_verifier.log.files import (
    Folder,
    digest_of,
    heatmap_of,
    image_of,
    read_mask,
    state_of,
    stored,
)
from tts_verifier.log.schema import names_of
from tts_verifier.log.tables import (
    TABLE,
    Read,
    conform,
    parts_of,
    read_column,
    read_table,
    read_tables,
    strangers,
)
from tts_verifier.types import Cost, Job, Prompt, Stored, Trial

Names = Mapping[str, Iterable[str]]
_ROLES: Final = ("score", "judge", "heatmap")
_COST: Final = itemgetter(*Cost.__dataclass_fields__)
_NOT_ASKED: Final = {"prompt_id", "prompt", "category", "parent_id", "seed", "proposal", "chosen"}
"""Columns of a row that its job tells, or that nobody needs who continues a run."""
_NOWHERE: Final = np.array([], np.int64)
_BLOCK: Final = 256
_WARNINGS: Final = 10


def read_trials(folder: Path) -> list[Trial]:
    """Returns the trials of a run folder in the order in which they were judged.

    Images, maps and states are read from their files when looked at, and checked against
    their SHA-256 then.

    Raises:
        RunError: a file is damaged.
    """
    table = read_table(folder)
    if table is None:
        return []
    names = _names(table.schema)
    return [trial_of(row, folder, names) for row in _rows(table)]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of `read_trials` as they are written, by column.

    Raises:
        RunError: a file is damaged.
    """
    table = read_table(folder)
    return [] if table is None else list(_rows(table))


def read_picks(folder: Path, ids: Collection[str]) -> dict[str, Pick]:
    """Returns what counts of some trials by id, from no more of a run folder than that needs.

    Raises:
        RunError: a file is damaged.
    """
    wanted, picks = pa.array(ids, pa.string()), {}
    for read in read_tables(folder):
        names = _names(read.file.schema_arrow)
        columns = ["trial_id", "objective", "detail", "image_path", "image_sha256", "error"]
        columns += [*names["score"], *(f"judge_{name}" for name in names["judge"])]
        for number in range(len(read.groups)):
            table = read.file.read_row_group(number, columns)
            for row in table.filter(pc.is_in(table["trial_id"], wanted)).to_pylist():
                picks[row["trial_id"]] = Pick(
                    id=row["trial_id"],
                    objective=_nan(row["objective"]),
                    scores=_scores(row, names),
                    judge=_judge(row, names),
                    image=_kept(row, "image", folder, image_of),
                    error=row["error"] or "",
                )
    return picks


def is_running(folder: Path) -> bool:
    """Returns whether a run folder has rows, or none at all, that a finished one would not."""
    return bool(parts_of(folder)) or not (folder / TABLE).exists()


def trial_of(
    row: Mapping[str, Any], folder: Path, names: Names, *, job: Job | None = None
) -> Trial:
    """Returns a row as a trial.

    Args:
        row: by column.
        folder: the run's.
        names: of its scores, judge's scores and maps.
        job: what the trial's id was made from; None = read it from the row.

    Raises:
        RunError: it is not a trial's, or its mask is gone.
    """
    try:
        return _trial(row, folder, names, job=job or _job(row, folder))
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder} holds a row that is not a trial: {error!r}.") from error


def _job(row: Mapping[str, Any], folder: Path) -> Job:
    prompt = Prompt(row["prompt_id"], row["prompt"], row.get("category") or "")
    return Job(prompt, proposal_from_json(row["proposal"], partial(read_mask, folder)))


def _trial(row: Mapping[str, Any], folder: Path, names: Names, *, job: Job) -> Trial:
    size, maps = (row["image_width"], row["image_height"]), {}
    for name in names["heatmap"]:
        if path := row[f"heatmap_{name}_path"]:
            box = tuple((row[f"heatmap_{name}_box"] or {}).values())
            decode = partial(heatmap_of, size=size, box=box)
            maps[name] = stored(folder, path, row[f"heatmap_{name}_sha256"], decode)
    return Trial(
        id=row["trial_id"],
        prompt=job.prompt,
        round=row["round"],
        proposal=job.proposal,
        progress=row["progress"],
        scores=_scores(row, names),
        objective=_nan(row["objective"]),
        cost=Cost(*_COST(row)),
        boxes=tuple([(b["x1"], b["y1"], b["x2"], b["y2"]) for b in row["boxes"]]),
        text=row["reply"],
        detail=row["detail"] or "diagnose",
        image=_kept(row, "image", folder, image_of),
        heatmaps=maps,
        state=_kept(row, "state", folder, state_of),
        judge=_judge(row, names),
        error=row["error"] or "",
    )


def _scores(row: Mapping[str, Any], names: Names) -> dict[str, float]:
    return {} if row["detail"] is None else {name: _nan(row[name]) for name in names["score"]}


def _judge(row: Mapping[str, Any], names: Names) -> dict[str, float]:
    values = {name: row[f"judge_{name}"] for name in names["judge"]}
    if all(value is None for value in values.values()):
        return {}
    return {name: _nan(value) for name, value in values.items()}


def _kept(
    row: Mapping[str, Any], column: str, folder: Path, decode: Callable[[bytes], Any]
) -> Stored[Any] | None:
    path = row[f"{column}_path"]
    return stored(folder, path, row[f"{column}_sha256"], decode) if path else None


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _names(schema: pa.Schema) -> dict[str, Iterable[str]]:
    return {role: names_of(schema, role) for role in _ROLES}


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for start in range(0, len(table), 4096):
        yield from table.slice(start, 4096).to_pylist()


def _by_prompt(reads: Sequence[Read]) -> dict[str, NDArray[np.int64]]:
    """Returns the places of every prompt's rows by its id: eight bytes a row."""
    if not reads:
        return {}  # What follows takes some time the first time.
    ids = read_column("prompt_id", reads).combine_chunks().dictionary_encode("encode")
    numbers = ids.indices.to_numpy()
    ends = np.cumsum(np.bincount(numbers, minlength=len(ids.dictionary)))
    places = np.split(np.argsort(numbers, kind="stable"), ends)[:-1]
    return dict(zip(ids.dictionary.to_pylist(), places, strict=True))


class Found:
    """What a run folder holds for the one who continues it, prompt by prompt.

    Files that are torn, changed or not ours are set aside with a `RunWarning`.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder, self._warned = folder, 0
        for path in strangers(folder.root):
            self._set_aside(path, "it is no part of a run")
        reads = list(read_tables(folder.root, self._set_aside))
        self._places = _by_prompt(reads)
        self._groups = [(read, number) for read in reads for number in range(len(read.groups))]
        sizes = (size for read in reads for size in read.groups)
        self._starts = list(accumulate(sizes, initial=0))
        schemas = [pa.schema([]), *(read.file.schema_arrow for read in reads)]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        self.names = _names(schema)
        skipped = _NOT_ASKED | {f"draw_{name}" for name in names_of(schema, "draw")}
        self._schema = pa.schema([column for column in schema if column.name not in skipped])
        files = ["image", "mask", *(f"heatmap_{name}" for name in self.names["heatmap"])]
        self._paths = {name: f"{name}_path" for name in files}
        self._group = lru_cache(4)(self._read_group)
        self._block = lru_cache(16)(self._read_block)

    def rows(self) -> Counter[str]:
        """Returns how many rows there are of each prompt, by its id."""
        return Counter({name: len(places) for name, places in self._places.items()})

    def close(self) -> None:
        """Lets the files go; nothing is found any more."""
        self._places.clear()
        self._groups.clear()
        self._group.cache_clear()
        self._block.cache_clear()

    def of(self, prompt: str) -> dict[str, Callable[[Job], Trial | None]]:
        """Returns a prompt's trials by their ids, each to be called for with its job.

        A call returns None where the trial's files are not there, and raises a `RunError` where
        its row is not a trial's.
        """
        found: dict[str, Callable[[Job], Trial | None]] = {}
        for place in self._places.get(prompt, _NOWHERE).tolist():
            group = bisect_right(self._starts, place) - 1
            block, within = divmod(place - self._starts[group], _BLOCK)
            row = self._block(group, block)[within]
            # Of two rows with the same id the later one counts.
            found[row["trial_id"]] = partial(self._trial, row, self._groups[group][0].written)
        return found

    def _trial(self, row: Mapping[str, Any], written: int, job: Job) -> Trial | None:
        columns = [column for column, path in self._paths.items() if row[path]]
        if not all([self._usable(row, column, written) for column in columns]):
            return None
        return trial_of(row, self._folder.root, self.names, job=job)

    def _read_block(self, group: int, block: int) -> list[dict[str, Any]]:
        table = self._group(group).slice(block * _BLOCK, _BLOCK)
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    def _read_group(self, group: int) -> pa.Table:
        read, number = self._groups[group]
        return conform(read.file.read_row_group(number, self._schema.names), self._schema)

    def _usable(self, row: Mapping[str, Any], column: str, written: int) -> bool:
        name = f"{self._folder.root}/{row[self._paths[column]]}"
        try:
            # A path as text: objects would take a fifth of the time of a million rows.
            if os.stat(name).st_mtime_ns <= written:
                return True
            path = Path(name)
            if column == "mask":
                read_mask(self._folder.root, row["mask_sha256"])
                return True
            if digest_of(path.read_bytes()) == row[f"{column}_sha256"]:
                return True
        except OSError as error:
            self._warn(f"{name} cannot be read ({error.strerror}). It is made again.")
            return False
        except RunError:
            pass
        # A look's picture is its parent's, which may have been drawn again by now; one that
        # is not below the folder is another run's.
        others = row["kind"] == "look" or row["image_path"].startswith("..")
        if not (others and column == "image"):
            self._set_aside(path, "it was changed since the log was written")
        return False

    def _set_aside(self, path: Path, why: str) -> None:
        place = self._folder.set_aside(path)
        self._warn(f"{path} cannot be used ({why}). It is now {place}; what it held is made again.")

    def _warn(self, message: str) -> None:
        self._warned += 1
        if self._warned == _WARNINGS:
            message += " More of these are not told."
        if self._warned <= _WARNINGS:
            warnings.warn(message, RunWarning, stacklevel=2)
