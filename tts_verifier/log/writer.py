"""Writes a run folder, so that a kill loses nothing that was verified.

    header.json        what the run is, and the environment that it ran in
    lock               the process that writes the folder, while there is one
    parts/*.parquet    while the run goes on: rows of verified batches, `chosen` null
    trials.parquet     when the run has finished: all rows, `chosen` filled
    images/, heatmaps/, masks/    PNG files; the rows name them by relative paths
    states/            latents of unfinished candidates, until no proposal can refer to them
    waiting/           notes on samples that are not verified yet, if a run generates ahead
    aside/             torn, changed and foreign files, which the user may inspect or delete

Every file appears by an atomic rename, and a row only after the files that it names. The run's id
in the header binds all tables to it, and digests bind the files to their rows. Threads
write images while the verifier scores them. A kill costs at most the generation of one batch
and the verification of one.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa

from tts_verifier.errors import RunError
from tts_verifier.log.header import note_session, note_table, write_header
from tts_verifier.log.lock import FolderLock
from tts_verifier.log.resume import LoggedTrials
from tts_verifier.log.schema import Columns, to_row
from tts_verifier.log.storage.binding import Binding
from tts_verifier.log.storage.codecs import COPY, IMAGE, MASK, STATE, Codec, HeatmapCodec
from tts_verifier.log.storage.files import ASIDE, DRAFTS, Folder, changed_at, files_in, path_of_mask
from tts_verifier.log.storage.pending_files import PendingFiles, WrittenFile
from tts_verifier.log.storage.table_writer import TableWriter
from tts_verifier.log.storage.tables import PARTS, damage
from tts_verifier.log.unverified import (
    NOTES,
    note_of,
    read_notes,
    sample_of_note,
    write_notes,
)
from tts_verifier.types import (
    Decoder,
    Heatmaps,
    InFile,
    InMemory,
    Job,
    Look,
    Repaint,
    Sample,
    Setting,
    Stored,
    Trial,
)
from tts_verifier.types.paths import file_names, path_inside

_STATES: Final = "states"
_FOLDERS: Final = (PARTS, NOTES, DRAFTS, ASIDE, _STATES, "images", "heatmaps", "masks")


@dataclass(frozen=True, slots=True, eq=False)
class _PendingFile:
    """A file on its way to the disk."""

    path: str
    """Relative to the run folder."""
    decoder: Decoder[Any]
    """What reads its value back."""
    written: Future[WrittenFile]
    """The file, once it is written."""

    def stored(self, folder: Path) -> InFile[Any]:
        """Waits until the file is written and returns the value that it holds."""
        return InFile(folder, self.path, self.written.result().sha256, self.decoder)


class RunLog:
    """Writes one run folder. `open_log` makes it; `close` or the end of a `with` closes it.

    Two threads may share it: one that generates calls every method but `append`, and one that
    verifies calls `append`. `finish` and `close` come after the last `append`.
    """

    def __init__(
        self, folder: Folder, lock: FolderLock, binding: Binding, settings: Mapping[str, Setting]
    ) -> None:
        self.folder, self._folder, self._lock = folder.root, folder, lock
        self.logged = LoggedTrials(folder, binding)
        """The rows of earlier processes."""
        self._columns = Columns(settings)
        self._columns.add_names(self.logged.names)
        self._tables = TableWriter(folder, binding, partial(note_table, folder))
        self._pending = PendingFiles(folder)
        # A note waits for its images; meanwhile it would occupy a thread of their pool.
        self._note_thread = ThreadPoolExecutor(1, "notes")
        # Ctrl-C interrupts the main thread only: rows of a batch are written in another.
        self._row_thread = ThreadPoolExecutor(1, "rows")
        self._notes: dict[str, Future[str]] = {}
        """The paths of the notes of this process that are being written, by their first trial."""
        # Without a lock: one thread adds notes and another removes them, and each such step is
        # atomic, as is the copy in `flush`.
        self._earlier_notes = read_notes(folder, self.logged.set_aside)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        try:
            self.close()
        except RunError as closing:
            if error is None:
                raise
            # What ended the run is what the user must know first.
            error.add_note(f"The log could not be closed either: {closing}")

    def unverified(self, jobs: Iterable[Job]) -> dict[str, Sample]:
        """Returns the samples of jobs that an earlier process left unverified, by trial id."""
        samples = {}
        for job in jobs:
            if job.id in self._earlier_notes:
                sample = sample_of_note(self._earlier_notes[job.id], job, self.folder)
                if sample is not None:
                    samples[job.id] = sample
        return samples

    def start_images(self, samples: Sequence[Sample], *, note: bool = False) -> None:
        """Starts to write the images of samples that are not verified yet.

        Args:
            samples: of one batch; those whose image is in a file already are skipped.
            note: also write their states, and a note on them, so that a kill does not lose them.
                Needed where other samples are generated before these are verified.
        """
        new = [
            sample
            for sample in samples
            if sample.image is not None
            and sample.stored is None
            and not isinstance(sample.job.proposal, Look)
        ]
        files = [self._start_sample(sample, with_state=note) for sample in new]
        if note and new:
            self._notes[new[0].job.id] = self._note_thread.submit(self._write_notes, new, files)

    def append(self, trials: Sequence[Trial]) -> list[Trial]:
        """Writes verified trials, and waits until they are on the disk.

        The first Ctrl-C during the call takes effect once they are.

        Returns:
            The same trials, with images, heatmaps and states in files.

        Raises:
            RunError: something cannot be written.
            InputError: a score has the name of a column.
        """
        written = self._row_thread.submit(self._append, trials)
        try:
            return written.result()
        except KeyboardInterrupt:
            written.result()
            raise

    def _append(self, trials: Sequence[Trial]) -> list[Trial]:
        self._columns.add_trials(trials)
        # All files start before the first is waited for: the pool writes them side by side.
        files = [self._start_trial(trial) for trial in trials]
        logged = [self._in_files(t, started) for t, started in zip(trials, files, strict=True)]
        rows = [to_row(trial, self._columns.generator) for trial in logged]
        # The files' names are on the disk before a row refers to them.
        self._folder.settle()
        table = pa.Table.from_pylist(rows, schema=self._columns.schema())
        self._tables.append(table, self._last_change(logged, files))
        self._pending.forget(file.path for started in files for file in started.values())
        self._delete_notes(trials)
        return logged

    def forget_states(self, trials: Iterable[Trial]) -> None:
        """Deletes the states of trials that no proposal can refer to any more."""
        for trial in trials:
            # A row may name any file as its state; the name that we gave it is the only one to go.
            if isinstance(trial.state, InFile) and trial.state.path == _state_path(trial.id):
                self._folder.delete(trial.state.path)

    def flush(self) -> None:
        """Waits until all notes are on the disk, with the files that they name.

        Raises:
            RunError: something could not be written.
        """
        for note in list(self._notes.values()):
            note.result()

    def finish(self, chosen: Collection[str], session: Mapping[str, Any] | None = None) -> None:
        """Merges the parts into one table that marks the chosen trials.

        Args:
            chosen: ids of the chosen trials.
            session: JSON values about this process, for the header; None = no entry.

        Raises:
            RunError: something could not be written, or a part was removed meanwhile.
        """
        self.flush()
        self._tables.check_parts()
        # Before the table: once that is finished, a continued run has nothing to note.
        if session is not None:
            note_session(self._folder, session)
        # The finished table is written now, and it replaces files that are open here.
        self.logged.close()
        try:
            self._tables.finish(self._columns.schema(), chosen)
        except FileNotFoundError as error:
            raise damage(Path(error.filename or self.folder), error.strerror) from error
        for name, suffix in ((_STATES, ".npz"), (NOTES, ".json")):
            for path in files_in(self.folder, name):
                if path.suffix == suffix and not path.is_dir():
                    self._folder.delete(f"{name}/{path.name}")

    def close(self) -> None:
        """Waits until everything is written and releases the folder; a second call does nothing.

        Raises:
            RunError: something could not be written.
        """
        if self._closed:
            return
        self._closed = True
        # Whatever a step raises, the threads end and other processes may have the folder.
        with ExitStack() as stack:
            stack.callback(self._lock.release)
            stack.callback(self._folder.sweep)
            stack.callback(self._pending.close)
            stack.callback(self._note_thread.shutdown)
            stack.callback(self._row_thread.shutdown)
            self.flush()

    # -- files -------------------------------------------------------------------------------

    def _start(self, path: str, codec: Codec[Any], value: Any) -> _PendingFile:
        return _PendingFile(path, codec, self._pending.start(path, codec, value))

    def _start_sample(self, sample: Sample, *, with_state: bool) -> dict[str, _PendingFile]:
        """Starts to write a sample's image and perhaps its state; returns the files by column."""
        trial_id = sample.job.id
        files = {"image": self._start(f"images/{trial_id}.png", IMAGE, sample.image)}
        if with_state and sample.state is not None:
            files["state"] = self._start(_state_path(trial_id), STATE, sample.state)
        return files

    def _start_trial(self, trial: Trial) -> dict[str, _PendingFile]:
        """Starts to write whatever a trial holds in memory; returns the files by column."""
        files: dict[str, _PendingFile] = {}

        def start(column: str, stored: Stored[Any] | None, path: str, codec: Codec[Any]) -> None:
            if isinstance(stored, InMemory):
                files[column] = self._start(path, codec, stored.value)
            elif stored is not None and stored.folder != self.folder:
                # The image of a recorded run: this folder refers to no other.
                written = self._pending.start(path, COPY, stored)
                files[column] = _PendingFile(path, stored.decoder, written)

        start("image", trial.image, f"images/{trial.id}.png", IMAGE)
        start("state", trial.state, _state_path(trial.id), STATE)
        heatmaps = {} if trial.verdict is None else trial.verdict.heatmaps.stored
        names = file_names(heatmaps)
        for name, stored in heatmaps.items():
            codec: Codec[Any] = IMAGE
            if isinstance(stored, InMemory):
                codec = HeatmapCodec(stored.value.size, stored.value.box)
            start(f"heatmap_{name}", stored, f"heatmaps/{trial.id}.{names[name]}.png", codec)
        if isinstance(trial.proposal, Repaint):
            mask = trial.proposal.mask
            files["mask"] = self._start(path_of_mask(mask), MASK, mask)
        return files

    def _in_files(self, trial: Trial, files: Mapping[str, _PendingFile]) -> Trial:
        """Waits for a trial's files and returns the trial with its values in these files."""
        stored = {column: file.stored(self.folder) for column, file in files.items()}
        verdict = trial.verdict
        # What has no new file was in a file already: a look has its parent's image.
        if verdict is not None:
            heatmaps = {
                name: stored.get(f"heatmap_{name}", value)
                for name, value in verdict.heatmaps.stored.items()
            }
            verdict = replace(verdict, heatmaps=Heatmaps(heatmaps))
        image, state = stored.get("image", trial.image), stored.get("state", trial.state)
        return replace(trial, verdict=verdict, image=image, state=state)

    def _last_change(
        self, trials: Sequence[Trial], files: Sequence[Mapping[str, _PendingFile]]
    ) -> int:
        """Returns when the last file of a batch of logged trials was changed."""
        changes = [file.written.result().changed for some in files for file in some.values()]
        # What has no new file was in a file already, and was checked when it was loaded.
        for trial, started in zip(trials, files, strict=True):
            if isinstance(trial.image, InFile) and "image" not in started:
                try:
                    place = path_inside(self.folder, trial.image.path)
                    changes.append(changed_at(os.lstat(place)))
                except OSError:
                    # The next process will find that it is gone.
                    continue
        return max(changes, default=0)

    # -- notes -------------------------------------------------------------------------------

    def _write_notes(
        self, samples: Sequence[Sample], files: Sequence[Mapping[str, _PendingFile]]
    ) -> str:
        notes = {
            sample.job.id: note_of(
                sample,
                {kind: (f.path, f.written.result().sha256) for kind, f in started.items()},
            )
            for sample, started in zip(samples, files, strict=True)
        }
        # The files' names are on the disk before a note refers to them.
        self._folder.settle()
        path = write_notes(self._folder, notes)
        self._folder.settle()
        return path

    def _delete_notes(self, trials: Sequence[Trial]) -> None:
        """Deletes the notes on trials that have rows now.

        The notes of earlier processes stay to the end: one may cover more than this batch.
        """
        for trial in trials:
            if trial.id in self._notes:
                self._folder.delete(self._notes.pop(trial.id).result())


def _state_path(trial_id: str) -> str:
    return f"{_STATES}/{trial_id}.npz"


def open_log(
    folder: Path,
    about: Mapping[str, Any],
    settings: Mapping[str, Setting],
    *,
    grows: Collection[str] = (),
    holder: Mapping[str, Any] | None = None,
) -> RunLog:
    """Starts a run folder, or opens that of the same run to continue it.

    Args:
        folder: the run folder; created if it does not exist.
        about: JSON values that identify the run; those of the folder must be equal.
        settings: the generator's settings, one column each.
        grows: names of the strategy's arguments that may be larger than in the folder.
        holder: JSON values about this process that the lock names too.

    Raises:
        FolderInUse: another process writes the folder, or another machine's did.
        RunError: the folder belongs to another run, or cannot be read or written.
    """
    files = Folder(folder)
    lock = FolderLock(folder, holder=holder)
    try:
        binding = write_header(files, about, grows=grows)
        files.sweep()
        for name in _FOLDERS:
            # Now, rather than when the first image has been paid for: an error that names a link.
            path_inside(folder, name)
        return RunLog(files, lock, binding, settings)
    except BaseException:
        lock.release()
        raise
