"""The run folder: what was drawn and judged, written so that a kill loses nothing judged.

    header.json        what the run is and under what it was made
    lock               while a process writes it: which one
    parts/*.parquet    while it runs: rows of judged batches, `chosen` null (see `parts`)
    trials.parquet     when it has finished: all rows, `chosen` filled
    images/, heatmaps/, masks/    PNG files, named in the rows by relative paths
    states/            latents of unfinished candidates, until nothing can refer to them
    waiting/           notes on what is drawn and not judged yet, where the two overlap
    aside/             files that were torn, changed or not ours, kept for whoever looks

Every file appears by an atomic rename, a row only after the files that it names. Threads
write pictures while they are judged, so that little is left to wait for before the next batch
is drawn: a kill costs at most the drawing of one batch and the judging of one. What a GPU may
have to wait for, drawings to be noted and rows to be written, waits for nothing but its own
files, which are compressed and flushed side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from tts_verifier.errors import RunError
from tts_verifier.log import tables
from tts_verifier.log.files import (
    Folder,
    digest_of,
    grey,
    heatmap_of,
    image_of,
    npz,
    png,
    rounded,
    state_of,
    stored,
)
from tts_verifier.log.header import note_session, read_header, write_header
from tts_verifier.log.lock import FolderLock
from tts_verifier.log.reader import Found, is_running, read_picks, read_rows, read_trials
from tts_verifier.log.schema import Columns, struct_of, to_row
from tts_verifier.log.unjudged import forget_notes, note, read_notes, sample_of, write_notes
from tts_verifier.log.worker import Worker
from tts_verifier.types import Job, Look, Repaint, Sample, Setting, Stored, Trial

__all__ = [
    "RunLog",
    "is_running",
    "open_log",
    "read_header",
    "read_picks",
    "read_rows",
    "read_trials",
]

T = TypeVar("T")
_Saving = tuple[str, Future[str]]
"""A file's path, and its digest to come."""


class _Kept(Generic[T]):
    """A value in memory until it is in its file."""

    def __init__(self, value: Stored[T], path: str, decode: Callable[[bytes], T]) -> None:
        self.path, self.decode, self.now = path, decode, value

    def as_stored(self) -> Stored[T]:
        """Returns the value, wherever it is when it is looked at."""
        return Stored(lambda: self.now.load(), self.path)


def _held(value: T) -> Stored[T]:
    return Stored(lambda: value)


@dataclass(eq=False)
class _Writing:
    """A trial on its way to the disk, and what of it becomes a file."""

    trial: Trial
    row: dict[str, Any]
    kept: dict[str, tuple[_Kept[Any], Future[str]]]


class RunLog:
    """Writes one run folder; made by `open_log`, closed by `close` or at the end of a `with`."""

    def __init__(self, folder: Folder, lock: FolderLock, draw: Mapping[str, Setting]) -> None:
        self.folder, self._files, self._lock = folder.root, folder, lock
        self.found = Found(folder)
        self._columns = Columns(draw)
        self._columns.know(self.found.names)
        self._parts = tables.parts_of(folder.root)
        self._next = 1 + max((part.number for part in self._parts), default=-1)
        self._saving = ThreadPoolExecutor(thread_name_prefix="save")
        # pyarrow imports pandas for its first table: better while the first batch is drawn.
        self._saving.submit(pa.array, [""])
        self._noting, self._adding = Worker("note"), Worker("rows")
        self._early: dict[str, tuple[Any, Future[str]]] = {}
        self._notes = read_notes(folder.root)
        self._noted: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def waiting(self, jobs: Mapping[str, Job]) -> dict[str, Sample]:
        """Returns what an earlier process drew of these and did not judge, by trial id."""
        samples = {
            name: sample_of(self._notes[name], job, self.folder)
            for name, job in jobs.items()
            if name in self._notes
        }
        return {name: sample for name, sample in samples.items() if sample is not None}

    def drawn(self, samples: Mapping[str, Sample], *, noted: bool = False) -> None:
        """Starts to write pictures that are not judged yet; a row follows with `append`.

        Args:
            samples: by trial id; those whose picture is in a file already are passed over.
            noted: others are drawn before these are judged, so that a kill must not lose them.

        Raises:
            RunError: what was written before could not be.
        """
        new = {
            name: sample
            for name, sample in samples.items()
            if sample.image is not None
            and sample.kept is None
            and not isinstance(sample.job.proposal, Look)
        }
        files = {name: self._save_early(name, sample, noted) for name, sample in new.items()}
        if noted and new:
            self._noting.give(2, self._note, new, files)

    def append(self, trials: Sequence[Trial], *, wait: bool = False) -> list[Trial]:
        """Starts to write judged trials: their files, then their rows as one part.

        Args:
            trials: judged.
            wait: return when that is on the disk.

        Returns:
            The trials, their images, maps and states in memory until they are in files.

        Raises:
            RunError: what was appended before could not be written.
            InputError: a score has the name of a column.
        """
        self._columns.meet(trials)
        batch = [self._prepare(trial) for trial in trials]
        self._adding.give(2, self._write, batch, self._columns.schema())
        if wait:
            self._adding.wait()
        return [item.trial for item in batch]

    def forget_states(self, trials: Iterable[Trial]) -> None:
        """Deletes the states of trials that no proposal can refer to any more."""
        paths = [t.state.path for t in trials if t.state is not None and t.state.path]
        if paths:
            self._adding.give(8, self._delete, paths)

    def flush(self) -> None:
        """Waits until all that was drawn and noted, or appended, is on the disk.

        Raises:
            RunError: something could not be written.
        """
        self._noting.wait()
        self._adding.wait()

    def finish(self, chosen: Collection[str], session: Mapping[str, Any] | None = None) -> None:
        """Merges the parts into one table that says which trials were chosen.

        Args:
            chosen: trial ids.
            session: JSON values that the header is to keep of this process; None = nothing.

        Raises:
            RunError: something could not be written, or was removed meanwhile.
        """
        self.flush()
        if gone := [part.path for part in self._parts if not part.path.exists()]:
            raise RunError(
                f"{gone[0]} was removed while the run was going on. The same command draws "
                "again what it held."
            )

        ids = pa.array(chosen, pa.string())

        def columns(piece: pa.Table) -> dict[str, pa.Array]:
            gone = pa.nulls(len(piece), pa.string())
            marks = pc.is_in(piece["trial_id"], ids)
            return {"state_path": gone, "state_sha256": gone, "chosen": marks}

        if session is not None:
            note_session(self._files, session)
        self.found.close()
        if self._parts or tables.chosen_of(self.folder) != set(chosen):
            tables.finish(self._files, self._columns.schema(), columns)
            self._parts = []
        for kind in ("states/*.npz", "waiting/*.json"):
            self._delete(path.relative_to(self.folder) for path in self.folder.glob(kind))

    def close(self) -> None:
        """Waits until all is written and lets the folder go; a second call does nothing.

        Raises:
            RunError: something could not be written.
        """
        try:
            self.flush()
        finally:
            self._noting.close()
            self._adding.close()
            self._saving.shutdown()
            self._files.sweep()
            self._lock.release()

    # -- in the callers' threads ------------------------------------------------------------

    def _save(self, path: str, encode: Callable[[Any], bytes], value: Any) -> Future[str]:
        """Starts to write a file, unless that was done early; returns its digest to come."""
        early, digest = self._early.pop(path, (None, None))
        if digest is not None and early is value:
            return digest
        return self._saving.submit(self._saved, path, encode, value, digest)

    def _save_early(self, name: str, sample: Sample, noted: bool) -> dict[str, _Saving]:
        todo: dict[str, tuple[str, Callable[[Any], bytes], Any]] = {
            "image": (f"images/{name}.png", png, sample.image)
        }
        if noted and sample.state is not None:
            todo["state"] = (f"states/{name}.npz", npz, sample.state)
        files = {}
        for kind, (path, encode, value) in todo.items():
            files[kind] = path, self._save(path, encode, value)
            self._early[path] = value, files[kind][1]
        return files

    def _prepare(self, trial: Trial) -> _Writing:
        kept: dict[str, tuple[_Kept[Any], Future[str]]] = {}

        def keep(
            name: str, value: Stored[T], path: str, codec: tuple[Callable[[T], bytes], Any]
        ) -> Stored[T]:
            item: _Kept[T] = _Kept(value, path, codec[1])
            kept[name] = item, self._save(path, codec[0], value.load())
            return item.as_stored()

        image, maps, state = trial.image, dict(trial.heatmaps), trial.state
        if image is not None and not image.path:
            image = keep("image", image, f"images/{trial.id}.png", (png, image_of))
        for name, value in trial.heatmaps.items():
            # What a strategy sees must not depend on whether the file was written yet.
            heatmap = rounded(value.load())
            decode = partial(heatmap_of, size=heatmap.size, box=heatmap.box)
            path = f"heatmaps/{trial.id}.{name}.png"
            codec = (lambda map_: png(grey(map_.grid)), decode)
            maps[name] = keep(f"heatmap_{name}", _held(heatmap), path, codec)
        if state is not None:
            state = keep("state", state, f"states/{trial.id}.npz", (npz, state_of))
        row = to_row(trial, self._columns.draw)
        row |= {f"heatmap_{n}_box": struct_of(v.load().box) for n, v in maps.items()}
        return _Writing(replace(trial, image=image, heatmaps=maps, state=state), row, kept)

    # -- in the log's threads ---------------------------------------------------------------

    def _saved(
        self, path: str, encode: Callable[[Any], bytes], value: Any, before: Future[str] | None
    ) -> str:
        """Writes a file, after what was `before` to be written under its name."""
        content = encode(value)
        if before is not None:
            before.exception()
        self._files.write(path, content)
        return digest_of(content)

    def _note(
        self, samples: Mapping[str, Sample], files: Mapping[str, Mapping[str, _Saving]]
    ) -> None:
        notes = {
            name: note(
                sample, {kind: (p, digest.result()) for kind, (p, digest) in files[name].items()}
            )
            for name, sample in samples.items()
        }
        self._files.settle()
        write_notes(self._files, notes)
        self._files.settle()
        self._noted.add(next(iter(notes)))

    def _write(self, batch: Sequence[_Writing], schema: pa.Schema) -> None:
        for item in batch:
            self._complete(item)
        self._files.settle()
        table = pa.Table.from_pylist([item.row for item in batch], schema=schema)
        self._parts.append(tables.write_part(self._files, (self._next, 0), table))
        self._next += 1
        self._files.settle()
        # An earlier process's notes may be on more than this batch: they stay to the end.
        forget_notes(self.folder, self._noted.intersection(item.trial.id for item in batch))
        self._parts = tables.merge(self._files, self._parts)

    def _complete(self, item: _Writing) -> None:
        """Waits for a trial's files and says in its row where they are."""
        row, image = item.row, item.trial.image
        if isinstance(item.trial.proposal, Repaint):
            row["mask_path"] = f"masks/{row['mask_sha256']}.png"
            mask = Image.fromarray(item.trial.proposal.mask.array())
            self._files.write(row["mask_path"], png(mask))
        if image is not None:
            picture = image.load()
            row |= {"image_width": picture.width, "image_height": picture.height}
            if "image" not in item.kept:
                # A look's picture is its parent's, whose digest may not have been known yet.
                digest = image.sha256 or digest_of((self.folder / image.path).read_bytes())
                row |= {"image_path": image.path, "image_sha256": digest}
        for column, (kept, saving) in item.kept.items():
            digest = saving.result()
            kept.now = stored(self.folder, kept.path, digest, kept.decode)
            row |= {f"{column}_path": kept.path, f"{column}_sha256": digest}

    def _delete(self, paths: Iterable[str | Path]) -> None:
        for path in paths:
            (self.folder / path).unlink(missing_ok=True)


def open_log(
    folder: Path,
    about: Mapping[str, Any],
    draw: Mapping[str, Setting],
    *,
    grows: Collection[str] = (),
) -> RunLog:
    """Starts a run folder, or opens that of the same run to continue it.

    Args:
        folder: is made if it does not exist.
        about: JSON values that say what the run is; those of the folder must be equal.
        draw: the generator's settings, a column each.
        grows: names of the strategy's numbers that may be larger than in the folder.

    Raises:
        RunError: the folder belongs to another run, is in use, or cannot be read or written.
    """
    files = Folder(folder)
    lock = FolderLock(folder)
    try:
        write_header(files, about, grows=grows)
        files.sweep()
        return RunLog(files, lock, draw)
    except BaseException:
        lock.release()
        raise
