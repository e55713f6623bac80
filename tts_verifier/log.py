"""The run folder: what was drawn and judged, written so that a kill loses nothing judged.

    header.json        what the run is and under what it was made
    lock               while a process writes it: which one
    parts/*.parquet    while it runs: rows of judged batches, `chosen` null (see `parts`)
    trials.parquet     when it has finished: all rows, `chosen` filled
    images/, heatmaps/, masks/    PNG files, named in the rows by relative paths
    states/            latents of unfinished candidates, until nothing can refer to them
    waiting/           notes on what is drawn and not judged yet, where the two overlap
    aside/             files that were torn, changed or not ours, kept for whoever looks

Every file appears by an atomic rename, a row only after the files that it names. A thread
of its own writes pictures while they are judged, so that little is left to wait for before
the next batch is drawn: a kill costs at most the drawing of one batch and the judging of one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, Generic, Self, TypeVar

import pyarrow as pa
from PIL import Image

from tts_verifier import parts
from tts_verifier.errors import RunError
from tts_verifier.files import (
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
from tts_verifier.header import note_session, read_header, write_header
from tts_verifier.lock import FolderLock
from tts_verifier.reading import Found, is_running, read_rows, read_trials
from tts_verifier.rows import Columns, struct_of, to_row
from tts_verifier.types import Job, Look, Repaint, Sample, Setting, Stored, Trial
from tts_verifier.waiting import forget_notes, note, read_notes, sample_of, write_notes

__all__ = ["RunLog", "is_running", "open_log", "read_header", "read_rows", "read_trials"]

T = TypeVar("T")


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
    kept: dict[str, tuple[_Kept[Any], Callable[[Any], bytes]]]


class RunLog:
    """Writes one run folder; made by `open_log`, closed by `close` or at the end of a `with`."""

    def __init__(self, folder: Folder, lock: FolderLock, draw: Mapping[str, Setting]) -> None:
        self.folder, self._files, self._lock = folder.root, folder, lock
        self.found = Found(folder)
        self._columns = Columns(draw)
        self._columns.know(self.found.names)
        self._parts = parts.parts_of(folder.root)
        self._next = 1 + max((part.number for part in self._parts), default=-1)
        self._thread = ThreadPoolExecutor(1, "log")
        self._encoding = ThreadPoolExecutor(thread_name_prefix="encode")
        self._writing: list[Future[None]] = []
        self._early: dict[str, tuple[Any, str]] = {}
        self._notes = read_notes(folder.root, self.found)
        self._noted: set[str] = set()
        self._turn = RLock()

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
        if new:
            self._later(2, self._write_early, new, noted)

    def append(self, trials: Sequence[Trial]) -> list[Trial]:
        """Starts to write judged trials: their files, then their rows as one part.

        Returns:
            The trials, their images, maps and states in memory until they are in files.

        Raises:
            RunError: what was appended before could not be written.
            InputError: a score has the name of a column.
        """
        self._columns.meet(trials)
        batch = [self._prepare(trial) for trial in trials]
        self._later(2, self._write, batch, self._columns.schema())
        return [item.trial for item in batch]

    def forget_states(self, trials: Iterable[Trial]) -> None:
        """Deletes the states of trials that no proposal can refer to any more."""
        paths = [t.state.path for t in trials if t.state is not None and t.state.path]
        if paths:
            self._later(8, self._delete, paths)

    def flush(self) -> None:
        """Waits until all that was appended is on the disk.

        Raises:
            RunError: something could not be written.
        """
        self._wait(0)

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

        def columns(piece: pa.Table) -> dict[str, pa.Array]:
            gone = pa.nulls(len(piece), pa.string())
            marks = pa.array([i in chosen for i in piece["trial_id"].to_pylist()], pa.bool_())
            return {"state_path": gone, "state_sha256": gone, "chosen": marks}

        if session is not None:
            note_session(self._files, session)
        self.found.close()
        if self._parts or parts.chosen_of(self.folder) != set(chosen):
            parts.finish(self._files, self._columns.schema(), columns)
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
            self._thread.shutdown()
            self._encoding.shutdown()
            self._files.sweep()
            self._lock.release()

    # -- in the callers' threads ------------------------------------------------------------

    def _prepare(self, trial: Trial) -> _Writing:
        kept: dict[str, tuple[_Kept[Any], Callable[[Any], bytes]]] = {}

        def keep(
            name: str, value: Stored[T], path: str, codec: tuple[Callable[[T], bytes], Any]
        ) -> Stored[T]:
            item: _Kept[T] = _Kept(value, path, codec[1])
            kept[name] = (item, codec[0])
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

    def _later(self, most: int, work: Callable[..., None], *arguments: Any) -> None:
        """Does work in the log's thread, after what is under way but `most` items is done."""
        with self._turn:
            self._wait(most)
            self._writing.append(self._thread.submit(work, *arguments))

    def _wait(self, most: int) -> None:
        with self._turn:
            while self._writing and (len(self._writing) > most or self._writing[0].done()):
                self._writing.pop(0).result()

    # -- in the log's thread ---------------------------------------------------------------

    def _write_early(self, samples: Mapping[str, Sample], noted: bool) -> None:
        notes = {}
        # A GPU waits for this, and compressing lets other threads go on.
        encoded = self._encoding.map(png, [sample.image for sample in samples.values()])
        for (name, sample), content in zip(samples.items(), encoded, strict=True):
            files = {"image": self._write_now(f"images/{name}.png", sample.image, content)}
            if noted and sample.state is not None:
                content = npz(sample.state)
                files["state"] = self._write_now(f"states/{name}.npz", sample.state, content)
            notes[name] = note(sample, files)
        if noted:
            self._files.settle()
            write_notes(self._files, notes)
            self._files.settle()
            self._noted.add(next(iter(notes)))

    def _write_now(self, path: str, value: Any, content: bytes) -> tuple[str, str]:
        self._files.write(path, content)
        digest = digest_of(content)
        self._early[path] = value, digest
        return path, digest

    def _write(self, batch: Sequence[_Writing], schema: pa.Schema) -> None:
        encoded = [self._encoded(item) for item in batch]
        for item, contents in zip(batch, encoded, strict=True):
            self._write_files(item, contents)
        self._files.settle()
        table = pa.Table.from_pylist([item.row for item in batch], schema=schema)
        self._parts.append(parts.write_part(self._files, (self._next, 0), table))
        self._next += 1
        self._files.settle()
        # An earlier process's notes may be on more than this batch: they stay to the end.
        forget_notes(self.folder, self._noted.intersection(item.trial.id for item in batch))
        self._parts = parts.merge(self._files, self._parts)

    def _encoded(self, item: _Writing) -> dict[str, Future[bytes]]:
        """Starts to encode what was not written early, by column."""
        started = {}
        for column, (kept, encode) in item.kept.items():
            value = kept.now.load()
            if self._early.get(kept.path, (None, ""))[0] is not value:
                started[column] = self._encoding.submit(encode, value)
        return started

    def _write_files(self, item: _Writing, encoded: Mapping[str, Future[bytes]]) -> None:
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
        for column, (kept, _) in item.kept.items():
            _, digest = self._early.pop(kept.path, (None, ""))
            if column in encoded:
                content = encoded[column].result()
                self._files.write(kept.path, content)
                digest = digest_of(content)
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
