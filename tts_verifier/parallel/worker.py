"""What a worker does: runs one shard of the prompts with parts that it builds once a process."""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import socket
import time
from collections.abc import Sequence
from contextlib import chdir, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import tts_verifier
from tts_verifier.errors import RunError
from tts_verifier.log import FolderInUse
from tts_verifier.log.header import read_header
from tts_verifier.log.lock import FolderLock
from tts_verifier.log.sharded import SHARDS, last_attempt, next_attempt
from tts_verifier.log.storage.files import Folder
from tts_verifier.parallel.shard_state import (
    NOTE,
    PROGRESS,
    AttemptNote,
    counts_to_json,
    next_note,
    write_done,
)
from tts_verifier.parallel.warned import noted_warnings
from tts_verifier.recipe.recipe import Recipe
from tts_verifier.recipe.rejudge import RecordedGenerator, recorded_parts, rejudged
from tts_verifier.registry import parameters
from tts_verifier.runner import RunSetup, execute
from tts_verifier.runner.progress import Progress, ProgressCounts
from tts_verifier.types import Job, Prompt, Trial
from tts_verifier.types.paths import read_json_inside

SESSION: Final = "session.json"
_PROGRESS_SECONDS: Final = 1.0
_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Order:
    """What all shards of a run have in common: what a worker is to build. Pickles."""

    recipe: Recipe
    """Checked, and without its prompts."""
    resolved: dict[str, Any]
    """The recipe with its defaults, as the coordinator's package knows them."""
    rejudge: Path | None
    """The run whose candidates are verified again; None = they are generated."""
    gpus: int
    """GPUs of a worker, as far as the recipe says."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One shard, for a worker. Pickles, and is small."""

    version: str
    """Of the coordinator's package."""
    order: bytes
    """A pickled `Order`: it is read only if the versions are equal."""
    digest: str
    """Of the recipe."""
    folder: Path
    """The run folder."""
    run: str
    """The run's id."""
    session: str
    """The coordinator's."""
    name: str
    """The shard's."""
    prompts: tuple[Prompt, ...]
    """The shard's."""
    place: Path
    """The coordinator's working folder: paths of the recipe may be relative to it."""
    timeout: int | None = None
    """As in `ParallelOptions`."""

    def __str__(self) -> str:
        # For messages of engines.
        return f"shard {self.name}"


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What a worker says of a shard."""

    counts: ProgressCounts
    """Of this process and, as far as it found them in the log, of earlier ones."""
    worker: str
    """Host and process."""
    attempt: int
    """Which attempt of the shard this is."""
    build_seconds: float = 0.0
    """What building the parts took; 0 if this process had them already."""
    seconds: float = 0.0
    """What running the shard took."""
    busy: dict[str, float] | None = None
    """As `RunResult.busy`; None if the shard was not finished."""
    warnings: tuple[str, ...] = ()
    """What the process warns of."""


class _Stopped(Exception):
    """The coordinator wants no more batches, or another worker has the shard."""


def run_shard(assignment: Assignment) -> ShardReport:
    """Runs a shard to its end, from where earlier processes left it.

    Raises:
        RunError: this machine has another package or does not see the folder, or workers die
            while they build the parts.
        TTSError: a part cannot be built, or the shard cannot be run.
    """
    # The workers of a cluster were started elsewhere.
    here = chdir(assignment.place) if os.access(assignment.place, os.X_OK) else nullcontext()
    with noted_warnings() as texts, here:
        try:
            report = _run_last_attempt(assignment)
        except (SystemExit, KeyboardInterrupt) as error:
            # An engine would take it for the end of its own process, or for the user's Ctrl-C.
            raise RunError(
                f"The recipe's parts must not end their process, and one did: {error!r}. Mend it; "
                "the same command goes on from there."
            ) from error
    return replace(report, warnings=tuple(texts))


def _run_last_attempt(assignment: Assignment) -> ShardReport:
    _check_version(assignment)
    _check_folder(assignment)
    folder, attempt = _free_attempt(assignment)
    try:
        return _run_attempt(assignment, folder, attempt)
    except FolderInUse:
        # Another process took it while the parts were built.
        return _run_attempt(assignment, *next_attempt(assignment.folder, assignment.name))


def _run_attempt(assignment: Assignment, folder: Path, attempt: int) -> ShardReport:
    files = Folder(folder)
    note = next_note(folder, assignment.session, timeout=assignment.timeout)
    counts = ProgressCounts()
    worker = f"{socket.gethostname()}:{os.getpid()}"
    note.write(files)
    began = time.perf_counter()
    built_before = _setup_of.cache_info().misses
    try:
        setup, resolved = _setup_of(assignment.order)
        build_seconds = time.perf_counter() - began
        if _setup_of.cache_info().misses == built_before:
            build_seconds = 0.0
        setup = replace(setup, refused=note.refused)
        if note.one_by_one:
            setup = replace(setup, largest_batch=1, overlap=False)
        note = replace(note, stage="run")
        note.write(files)
        began = time.perf_counter()
        with _ShardProgress(assignment, files, note, attempt) as progress:
            try:
                result = execute(
                    setup,
                    assignment.prompts,
                    folder=folder,
                    progress=progress,
                    recipe={**resolved, "shard": {"run": assignment.run, "name": assignment.name}},
                    holder={"run": assignment.run, "attempt": attempt},
                )
            except _Stopped:
                seconds = time.perf_counter() - began
                return ShardReport(progress.counts, worker, attempt, build_seconds, seconds)
            counts = progress.counts
    finally:
        # Whatever ends it in order is no death. Who was given up stays given up.
        replace(note, stage="").write(files)
        files.sweep()
    write_done(files, assignment.digest, result.results, counts)
    files.delete(NOTE)
    files.delete(PROGRESS)
    files.sweep()
    seconds = time.perf_counter() - began
    return ShardReport(counts, worker, attempt, build_seconds, seconds, dict(result.busy))


def _check_version(assignment: Assignment) -> None:
    if assignment.version != tts_verifier.__version__:
        raise RunError(
            f"All workers must have the coordinator's version of tts_verifier, "
            f"{assignment.version}; {socket.gethostname()} has {tts_verifier.__version__}. Install "
            "the same version there."
        )


def _check_folder(assignment: Assignment) -> None:
    host = socket.gethostname()
    try:
        run = read_header(assignment.folder)["run"]
    except RunError as error:
        raise RunError(
            f"All workers must see the run folder, and {host} cannot read {assignment.folder}: "
            f"{error} Put it on storage that all machines mount under the same path."
        ) from error
    if run != assignment.run:
        raise RunError(
            f"All workers must see the same run folder; {assignment.folder} on {host} holds "
            f"another run ({run}, not {assignment.run}). Put it on storage that all machines mount "
            "under the same path."
        )


def _free_attempt(assignment: Assignment) -> tuple[Path, int]:
    """Returns the last attempt of a shard, or a new one where another process still has that."""
    for _ in range(_TRIES):
        folder, number = last_attempt(assignment.folder, assignment.name)
        try:
            FolderLock(folder).release()
        except FolderInUse:
            # A worker of a coordinator that was killed ends by itself within a moment.
            time.sleep(0.2)
        else:
            return folder, number
    return next_attempt(assignment.folder, assignment.name)


@lru_cache(1)
def _setup_of(order: bytes) -> tuple[RunSetup, dict[str, Any]]:
    """Returns the parts, and the recipe with its defaults. Weights are loaded once a process."""
    what: Order = pickle.loads(order)
    resolved = what.recipe.resolved()
    # A shard's header has the shard's own.
    del resolved["prompts"]
    parts: dict[str, Any] = {}
    if what.rejudge is not None:
        recorded = RecordedGenerator(what.rejudge, what.rejudge / SHARDS)
        parts, resolved = recorded_parts(recorded), rejudged(resolved, recorded)
        resolved["rejudge"] = what.resolved["rejudge"]
    if resolved != what.resolved:
        differ = sorted(
            name
            for name in {*resolved, *what.resolved}
            if resolved.get(name) != what.resolved.get(name)
        )
        raise RunError(
            "All workers must read the recipe as the coordinator does; "
            f"{socket.gethostname()} has other defaults for {', '.join(differ)}. Install the same "
            "packages there."
        )
    recipe = what.recipe if what.gpus < 2 else _apart(what.recipe)
    return recipe.build(**parts), resolved


def _apart(recipe: Recipe) -> Recipe:
    """Returns a recipe whose verifier is on the worker's second GPU, unless it says where."""
    section = recipe.sections["verifier"]
    says = {"device", "device_map"} & set(section.values)
    if says or "device" not in parameters(section.builder):
        return recipe
    verifier = replace(section, values={**section.values, "device": "cuda:1"})
    return replace(recipe, sections={**recipe.sections, "verifier": verifier})


class _ShardProgress(Progress):
    """Writes the counts to the shard's folder, and ends the run when the coordinator wants that."""

    def __init__(
        self, assignment: Assignment, files: Folder, note: AttemptNote, attempt: int
    ) -> None:
        super().__init__()
        self._assignment, self._files, self._note = assignment, files, note
        self._attempt, self._written = attempt, 0.0
        self._one_by_one, self._rows = note.one_by_one, note.rows
        self._limit_silence()

    def start(self, jobs: Sequence[Job], *, again: bool = False) -> None:
        if not again:
            self._stop_if_unwanted()
        if self._one_by_one:
            rows = self._rows + self.counts.new
            if rows > self._note.rows:
                # The prompts before this one did no harm.
                self._note = replace(self._note, rows=rows, deaths=0)
            prompts = tuple(dict.fromkeys(job.prompt.id for job in jobs))
            replace(self._note, prompts=prompts).write(self._files)

    def done(self, trials: Sequence[Trial], *, from_log: bool = False) -> None:
        super().done(trials, from_log=from_log)
        self._limit_silence()

    def close(self) -> None:
        if self._assignment.timeout:
            faulthandler.cancel_dump_traceback_later()

    def _limit_silence(self) -> None:
        # It prints where every thread is, and ends the process also where Python itself is stuck.
        if self._assignment.timeout:
            faulthandler.dump_traceback_later(self._assignment.timeout, exit=True)

    def show(self) -> None:
        now = time.monotonic()
        if now - self._written >= _PROGRESS_SECONDS:
            self._written = now
            self._write()

    def _write(self) -> None:
        content = json.dumps(counts_to_json(self.counts)).encode()
        self._files.write(PROGRESS, content, flush=False)

    def _stop_if_unwanted(self) -> None:
        assignment = self._assignment
        try:
            session = read_json_inside(assignment.folder, SESSION, most=4096)
        except (OSError, ValueError, RecursionError):
            session = None
        later = f"{SHARDS}/{assignment.name}.{self._attempt + 1}"
        if session != assignment.session or (assignment.folder / later).exists():
            raise _Stopped
