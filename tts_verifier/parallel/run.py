"""The coordinator of a run on many processes: hands out shards, counts, and summarises.

It loads no model and holds no trial. What it needs of a finished shard is in the shard's folder.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import yaml

import tts_verifier
from tts_verifier.errors import RunError, RunWarning
from tts_verifier.loading.regular_files import output_path, user_path
from tts_verifier.log.header import note_session
from tts_verifier.log.lock import FolderLock
from tts_verifier.log.sharded import SHARDS, Shards, last_attempt, last_attempts, open_shards
from tts_verifier.log.storage.files import Folder
from tts_verifier.parallel.engine import WorkerEngine, hand_out, open_engine
from tts_verifier.parallel.engines.processes import cores, gpus_here
from tts_verifier.parallel.finished import whole_results
from tts_verifier.parallel.interrupts import Interrupt, gentle_interrupts
from tts_verifier.parallel.shard_state import (
    counts_from_json,
    is_worked_on,
    read_done,
    read_progress,
    results_of,
)
from tts_verifier.parallel.stalls import Stalls
from tts_verifier.parallel.warned import ShownWarnings
from tts_verifier.parallel.worker import SESSION, Assignment, Order, ShardReport, run_shard
from tts_verifier.recipe.parallel_options import ParallelOptions
from tts_verifier.recipe.recipe import Recipe
from tts_verifier.recipe.rejudge import RecordedGenerator, recorded_parts, rejudged
from tts_verifier.recipe.run import Outcome, finish
from tts_verifier.runner import RunResult
from tts_verifier.runner.progress import Progress, ProgressCounts
from tts_verifier.runner.result import PromptResult
from tts_verifier.types import Prompt

DEFAULT_SHARD: Final = 256
"""Prompts of a shard: with fewer, the last batches of each shard would be emptier."""
_MOST_SHOWN: Final = 200
"""More prompts are not shown one by one."""
_STOPPING: Final = (
    "Ctrl-C: the workers stop after the batch under way. Another Ctrl-C ends them at once."
)
_FEWEST_SHARDS: Final = 2
"""Shards for each worker, if the prompts are few: otherwise some workers would have none."""


def run_parallel(
    recipe: Recipe,
    *,
    output: Path | None = None,
    rejudge: Path | None = None,
    subset: int | None = None,
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
) -> Outcome:
    """Runs a recipe on the processes and machines that its `parallel` says.

    A run that was stopped or killed continues, also on another engine or number of workers: the
    folder fixes the shards and nothing else.

    Args:
        recipe: from `load_recipe`, with `parallel`.
        output, rejudge, subset, say, progress: as for `run_recipe`.

    Raises:
        TTSError: a part cannot be built, the run folder cannot be used, or the engine cannot start.
        KeyboardInterrupt: after Ctrl-C, once every worker has finished its batch.
    """
    options = recipe.parallel or ParallelOptions()
    folder = output_path(output or recipe.output).absolute()
    order, prompts, grows = _order_of(recipe, options, rejudge, folder)
    say(yaml.safe_dump(_shown_recipe(recipe, order), sort_keys=False, allow_unicode=True))
    files = Folder(folder)
    with ExitStack() as stack:
        stack.callback(FolderLock(folder).release)
        shards = open_shards(
            files,
            {"recipe": order.resolved},
            prompts,
            size=_shard_size(options, len(prompts)),
            grows=grows,
        )
        _check_shard(options, shards)
        progress = stack.enter_context(progress or Progress())
        coordinator = _Coordinator(shards, prompts, order, options, progress)
        coordinator.run()
        progress.phase("finish")
        results = list(coordinator.results())
        result = RunResult(results, folder, coordinator.busy())
        outcome = finish(result, folder, folder / SHARDS / "*" / "trials.parquet", subset)
        files.sweep()
    return outcome


def _order_of(
    recipe: Recipe, options: ParallelOptions, rejudge: Path | None, folder: Path
) -> tuple[Order, Sequence[Prompt], Sequence[str]]:
    """Returns what workers build, the prompts, and the names of arguments that may grow."""
    resolved, prompts, parts = recipe.resolved(), recipe.prompts, dict[str, Any]()
    if rejudge is not None:
        rejudge = user_path(rejudge).absolute()
        recorded = RecordedGenerator(rejudge, folder)
        parts, resolved = recorded_parts(recorded), rejudged(resolved, recorded)
        prompts = recorded.prompts
    # The top header names the prompts by a file, and a shard's header has the shard's own.
    resolved = {name: value for name, value in resolved.items() if name != "prompts"}
    strategy = recipe.check(**parts)["strategy"]
    grows = tuple(getattr(strategy, "grows", ()))
    order = Order(replace(recipe, prompts=(), parallel=None), resolved, rejudge, options.gpus or 0)
    return order, prompts, grows


def _shown_recipe(recipe: Recipe, order: Order) -> dict[str, Any]:
    options = recipe.parallel or ParallelOptions()
    parallel = {name: getattr(options, name) for name in options.__slots__}
    if order.rejudge is not None:
        # The prompts are those of the recorded run.
        return {**order.resolved, "parallel": parallel}
    prompts: Any = [{"id": p.id, "prompt": p.text} for p in recipe.prompts[:_MOST_SHOWN]]
    if len(recipe.prompts) > _MOST_SHOWN:
        # YAML of a million prompts would take minutes.
        prompts = f"{len(recipe.prompts)} prompts, the first one: {recipe.prompts[0].text}"
    return {**order.resolved, "prompts": prompts, "parallel": parallel}


def _shard_size(options: ParallelOptions, prompts: int) -> int:
    if options.shard is not None:
        return options.shard
    workers = options.workers or len(gpus_here()) or cores()
    return max(min(DEFAULT_SHARD, -(-prompts // (_FEWEST_SHARDS * workers))), 1)


def _check_shard(options: ParallelOptions, shards: Shards) -> None:
    largest = max(shards.sizes.values())
    # A single shard may have fewer prompts than it could.
    smaller = options.shard is not None and options.shard < largest
    if smaller or (options.shard not in (None, largest) and len(shards.sizes) > 1):
        raise RunError(
            f"A run keeps the shards of its first start; those of {shards.folder} have {largest} "
            f"prompts, and shard is {options.shard}. Leave out shard, or choose another output "
            "folder."
        )


@dataclass(slots=True)
class _Tally:
    """What workers have reported."""

    counts: ProgressCounts = field(default_factory=ProgressCounts)
    """Of shards that are finished."""
    seconds: dict[str, float] = field(default_factory=lambda: {"generate": 0.0, "verify": 0.0})
    """Seconds of work on each side."""
    built: int = 0
    """How often parts were built."""
    build_seconds: float = 0.0
    """The longest time that building the parts took."""
    workers: set[str] = field(default_factory=set)
    """Hosts and processes that finished or stopped a shard."""

    def add(self, report: ShardReport) -> None:
        """Adds a worker's report."""
        self.workers.add(report.worker)
        self.built += report.build_seconds > 0
        self.build_seconds = max(self.build_seconds, report.build_seconds)
        self.counts += report.counts
        for side, share in (report.busy or {}).items():
            self.seconds[side] += share * report.seconds


class _Coordinator:
    """Hands out the shards of a run that are not finished, under the run folder's lock."""

    def __init__(
        self,
        shards: Shards,
        prompts: Sequence[Prompt],
        order: Order,
        options: ParallelOptions,
        progress: Progress,
    ) -> None:
        self._shards, self._prompts, self._order = shards, prompts, order
        self._options, self._progress = options, progress
        self._digest = hashlib.sha256(
            json.dumps(order.resolved, sort_keys=True).encode()
        ).hexdigest()
        self._files, self._session = Folder(shards.folder), uuid.uuid4().hex
        self._tally, self._wall, self._workers = _Tally(), 1e-9, 1
        self._warned = ShownWarnings()
        self._found: dict[str, list[PromptResult]] = {}
        """Results of shards that earlier calls have finished."""
        self._in_flight: set[str] = set()
        """Names of shards that workers have."""
        self._stalls = Stalls()

    def run(self) -> None:
        """Runs every shard that is not finished.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once the workers have stopped.
        """
        todo = list(self._unfinished())
        places = [last_attempt(self._shards.folder, name)[0] for name, _ in todo]
        begun = [read_progress(place) for place in places]
        rows = self._tally.counts.rows_in_log + sum(c.from_log + c.new for c in begun)
        self._progress.begin(len(self._prompts), rows)
        if not todo:
            self._show()
            return
        self._write_session(self._session)
        began = time.perf_counter()
        try:
            with (
                gentle_interrupts(lambda: self._write_session("")) as interrupt,
                open_engine(self._options, run_shard) as engine,
            ):
                self._workers = engine.workers
                self._run_on(engine, todo, interrupt)
        finally:
            self._write_session("")
            self._wall = max(time.perf_counter() - began, 1e-9)
            self._note_session()

    def results(self) -> Iterator[PromptResult]:
        """Yields the results of all prompts, in their order."""
        folders = last_attempts(self._shards.folder, self._shards.sizes)
        for name, prompts in self._shards.split(self._prompts):
            if name in self._found:
                yield from self._found[name]
                continue
            folder = folders[name]
            done = read_done(folder, self._digest)
            if done is None:
                raise RunError(f"{folder} must be a finished shard, and is none. Start again.")
            yield from results_of(done, prompts, {})

    def busy(self) -> dict[str, float]:
        """Returns the fractions of the workers' time that went into each side."""
        whole = self._wall * self._workers
        return {side: seconds / whole for side, seconds in self._tally.seconds.items()}

    def _unfinished(self) -> Iterator[tuple[str, tuple[Prompt, ...]]]:
        folders = last_attempts(self._shards.folder, self._shards.sizes)
        for name, prompts in self._shards.split(self._prompts):
            folder = folders[name]
            done = read_done(folder, self._digest)
            shard = {"run": self._shards.run, "name": name}
            results = None if done is None else whole_results(folder, done, prompts, shard)
            if done is None or results is None:
                yield name, prompts
                continue
            self._found[name] = results
            counts = counts_from_json(done["counts"])
            # Whoever drew them, they are in the log now.
            found = counts.new + counts.from_log
            counts = replace(counts, from_log=found, new=0, busy_seconds=0.0, rows_in_log=found)
            self._tally.counts += counts

    def _run_on(
        self,
        engine: WorkerEngine,
        todo: Sequence[tuple[str, tuple[Prompt, ...]]],
        interrupt: Interrupt,
    ) -> None:
        order, place = pickle.dumps(self._order), Path.cwd()

        def assignments() -> Iterator[Assignment]:
            for name, prompts in todo:
                if interrupt.asked:
                    return
                self._in_flight.add(name)
                yield Assignment(
                    tts_verifier.__version__,
                    order,
                    self._digest,
                    self._shards.folder,
                    self._shards.run,
                    self._session,
                    name,
                    prompts,
                    place,
                    self._options.timeout,
                )

        def idle() -> None:
            if interrupt.asked and not interrupt.said:
                interrupt.said = True
                warnings.warn(_STOPPING, RunWarning, stacklevel=2)
            self._show()

        for assignment, report in hand_out(engine, assignments(), idle):
            self._in_flight.remove(assignment.name)
            self._stalls.forget(assignment.name)
            self._tally.add(report)
            self._warned.show(report.warnings)
            if report.busy is None and not interrupt.asked:
                raise RunError(
                    f"Shard {assignment.name} was taken from {report.worker} by another process. "
                    "Wait until that one has ended; the same command goes on from there."
                )
            self._show()

    def _show(self) -> None:
        counts = self._tally.counts
        for name in self._in_flight:
            folder, _ = last_attempt(self._shards.folder, name)
            own = read_progress(folder)
            if is_worked_on(folder, self._session):
                self._stalls.note(name, own.new + own.from_log)
            counts += own
        counts = replace(counts, prompts=len(self._prompts))
        phase = "run" if counts.new or not self._in_flight else "load"
        stalled = str(self._stalls)
        self._progress.show_counts(phase, counts, self._workers, stalled=stalled)

    def _write_session(self, session: str) -> None:
        self._files.write(SESSION, json.dumps(session).encode(), flush=False)

    def _note_session(self) -> None:
        tally = self._tally
        note_session(
            self._files,
            {
                "seconds": self._wall,
                "busy": self.busy(),
                "engine": self._options.engine,
                "workers": self._workers,
                "processes": len(tally.workers),
                "built": tally.built,
                "build_seconds": tally.build_seconds,
            },
        )
