"""Runs the cases of a campaign, in processes of their own, and counts what came of them.

A case ends in one of these ways:

    right      the value that an independent calculation gives
    refused    an error of the package, with a message
    uncaught   any other exception
    wrong      another value, or none, without a word
    outside    a file outside the folder that was given changed
    slow       more processor time than the campaign allows, several times over
    hung       no end within the campaign's limit
    died       the process ended

The first two are as they should be. A process that hangs or dies is replaced by a new one, which
goes on with the next case.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple

from tts_verifier.errors import RunWarning, TTSError

RIGHT = ("right", "refused")
"""How cases should end."""
MEMORY = 3 * 2**30
"""Bytes that a process may take beside what it has at its start."""
_SECONDS_OF_GRACE = 5
"""A case that even an alarm does not end gets this much more before its process is killed."""


class Result(NamedTuple):
    """What came of a case."""

    kind: str
    """What was done: a mutation, a damage, a format, a command."""
    outcome: str
    """One of the ways listed at the top."""
    detail: str = ""
    """What was found, for people."""
    items: int = 1
    """How many files, kills or calls the case covers."""
    seconds: float = 0.0
    """How long the case took; a campaign that measures better may set it."""


class HungError(BaseException):
    """Ends a case at its limit; no handler of the package should catch it."""


class WrongError(AssertionError):
    """A value that is not the right one."""


def expect(right: object, message: str = "") -> None:
    """Raises WrongError unless `right` is true."""
    if not right:
        raise WrongError(message)


# -- one case -------------------------------------------------------------------------------------


def run_case(campaign: ModuleType, seed: int, number: int, home: Path) -> list[Result]:
    """Carries out one case and never raises."""
    dice = random.Random(f"{name_of(campaign)} {seed} {number}")
    began = time.perf_counter()
    try:
        with _alarm(campaign.LIMIT):
            done = campaign.case(number, dice, home)
        results = [done] if isinstance(done, Result) else list(done)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        results = [judged(error)]
    decoy: Decoy | None = getattr(campaign, "_shared", {}).get("decoy")
    # However the case ended: what it did outside counts, and must not be put on the next one.
    if decoy is not None and (changed := decoy.changed()):
        kind = results[0].kind if results else "?"
        results.append(Result(kind, "outside", f"changed: {changed}; {results[0].detail}"[:300]))
    seconds = (time.perf_counter() - began) / max(len(results), 1)
    return [r if r.seconds else r._replace(seconds=seconds) for r in results]


def judged(error: BaseException, kind: str = "") -> Result:
    """Returns how a case ended that raised an error."""
    kind = kind or getattr(error, "kind", "?")
    if isinstance(error, TTSError):
        return Result(kind, "refused", f"{type(error).__name__}: {error}"[:300])
    if isinstance(error, WrongError):
        return Result(kind, "wrong", str(error)[:300])
    outcome = "hung" if isinstance(error, HungError) else "uncaught"
    frames = traceback.extract_tb(error.__traceback__)
    # The package's own frame says where the fault is; a library's frames say how it shows.
    ours = [f for f in frames if "tts_verifier" in f.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    return Result(kind, outcome, f"{type(error).__name__} at {place}: {error}"[:300])


@contextmanager
def of_kind(kind: str) -> Iterator[None]:
    """Notes on every exception within what the case was about."""
    try:
        yield
    except BaseException as error:
        if not hasattr(error, "kind"):
            error.kind = kind  # type: ignore[attr-defined]
        raise


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise HungError(f"no end after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    # Again and again: the first one may be lost in a destructor, or caught by a broad handler.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- a tree that nobody may touch -----------------------------------------------------------------


class Decoy:
    """Files beside the folders that commands are given; none of them may change.

    Args:
        root: where they are; written anew.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._write()

    def _write(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        for name in ("letter.txt", "photo.png", "states/x.npz", "run/header.json", "images/0.png"):
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"private: {name}".encode())
        self._before = snapshot(self.root)

    def changed(self) -> list[str]:
        """Returns what differs from before, and puts it back."""
        after = snapshot(self.root)
        differ = {n for n in self._before | after if self._before.get(n) != after.get(n)}
        if differ:
            self._write()
        return sorted(differ)


def snapshot(root: Path) -> dict[str, tuple[Any, ...]]:
    """Returns type, time and digest of everything below a folder, by relative path."""
    found: dict[str, tuple[Any, ...]] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            about = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            # A folder's time changes with a file that comes and goes.
            found[os.path.relpath(path, root)] = (
                about.st_mode,
                about.st_mtime_ns,
                hashlib.sha256(content).hexdigest(),
            )
    return found


# -- many cases -----------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of a campaign so far."""

    campaign: str
    seed: int
    cases: int = 0
    items: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Outcomes by kind of case."""
    slowest: tuple[float, int, str] = (0.0, -1, "")
    """Seconds, number and kind."""
    bad: dict[tuple[str, str], list[tuple[int, str]]] = field(default_factory=dict)
    """Number and detail of cases that did not end as they should, by kind and outcome."""
    rows: list[tuple[int, Result]] | None = None
    """All results, if they are wanted."""

    def add(self, number: int, results: Iterable[Result]) -> None:
        """Counts what came of a case."""
        self.cases += 1
        for result in results:
            self.items += result.items
            self.outcomes[result.outcome] += 1
            self.kinds[result.kind, result.outcome] += 1
            self.slowest = max(self.slowest, (result.seconds, number, result.kind))
            if result.outcome not in RIGHT:
                listed = self.bad.setdefault((result.kind, result.outcome), [])
                if len(listed) < 20:
                    listed.append((number, result.detail))
            if self.rows is not None:
                self.rows.append((number, result))

    def merge(self, other: Tally) -> None:
        """Adds what another process counted."""
        self.cases += other.cases
        self.items += other.items
        self.outcomes += other.outcomes
        self.kinds += other.kinds
        self.slowest = max(self.slowest, other.slowest)
        for key, listed in other.bad.items():
            self.bad[key] = [*self.bad.get(key, []), *listed][:20]
        if self.rows is not None:
            self.rows += other.rows or []

    @property
    def clean(self) -> bool:
        """Whether every case ended as it should."""
        return not self.bad

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON values."""
        seconds, number, kind = self.slowest
        wanted = ("right", "refused", "uncaught", "wrong", "outside", "slow", "hung", "died")
        return {
            "campaign": self.campaign,
            "seed": self.seed,
            "cases": self.cases,
            "items": self.items,
            **{name: self.outcomes[name] for name in wanted},
            "slowest_ms": round(1000 * seconds, 2),
            "slowest_case": number,
            "slowest_kind": kind,
        }


def run_here(campaign: ModuleType, numbers: Iterable[int], home: Path, *, seed: int = 0) -> Tally:
    """Carries out cases in this process, which must not hang: for tests and for one case."""
    tally = _tally(campaign, seed, True)
    with limited_memory(campaign):
        prepare(campaign, home)
        for number in numbers:
            tally.add(number, run_case(campaign, seed, number, home))
    return tally


@contextmanager
def limited_memory(campaign: ModuleType) -> Iterator[None]:
    """Makes memory run out in this process before it does on the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + getattr(campaign, "MEMORY", MEMORY), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def prepare(campaign: ModuleType, home: Path) -> None:
    """Makes what all cases of a process share."""
    home.mkdir(parents=True, exist_ok=True)
    if hasattr(campaign, "prepare"):
        campaign.prepare(home)


@dataclass
class _Worker:
    """A process and what the parent knows of it."""

    process: ForkProcess
    pipe: Connection
    now: Any
    """Shared: the number of the case in work, when it began, and the first number not sent."""
    fatal: set[int]
    """Cases that ended earlier processes at this place."""


def run_many(
    campaign: ModuleType,
    cases: int,
    home: Path,
    *,
    seed: int = 0,
    workers: int = 2,
    seconds: float = 0.0,
    with_rows: bool = False,
) -> Tally:
    """Carries out the cases 0, 1, … in several processes.

    Args:
        campaign: a module of this package.
        cases: how many.
        home: an empty folder; each process has its own below it.
        seed: another seed, other cases.
        workers: processes; number i goes to process i modulo `workers`.
        seconds: no case begins later than this after all is prepared; 0 = no such limit.
        with_rows: keep every result.
    """
    total = _tally(campaign, seed, with_rows)
    context = multiprocessing.get_context("fork")

    def start(place: int, first: int, fatal: set[int]) -> _Worker:
        here, there = context.Pipe(duplex=False)
        now = context.Array("d", [first, float("inf"), first], lock=False)
        numbers = [n for n in range(first, cases, workers) if n not in fatal]
        arguments = (
            campaign,
            seed,
            home / f"worker{place}",
            numbers,
            seconds,
            with_rows,
            there,
            now,
        )
        process = context.Process(target=_work, args=arguments)
        process.start()
        there.close()
        return _Worker(process, here, now, fatal)

    live = {place: start(place, place, set()) for place in range(min(workers, cases))}
    printed = time.time()
    while live:
        wait([worker.pipe for worker in live.values()], timeout=1)
        for place, worker in list(live.items()):
            fate = _collect(worker, total) or _overdue(worker, campaign.LIMIT)
            if not fate:
                continue
            worker.process.join()
            del live[place]
            if fate != "finished":
                number, first_lost = int(worker.now[0]), int(worker.now[2])
                detail = f"exit code {worker.process.exitcode}"
                total.add(number, [Result("?", fate, detail)])
                # What the process had not sent is done again, but for the case that ended it.
                live[place] = start(place, first_lost, {*worker.fatal, number})
        if time.time() - printed > 15:
            printed = time.time()
            bad = {f"{k}, {o}": [n for n, _ in listed[:3]] for (k, o), listed in total.bad.items()}
            text = f"{total.cases} of {cases}: {dict(total.outcomes)} {bad or ''}"
            print(text, file=sys.stderr, flush=True)
    return total


def _tally(campaign: ModuleType, seed: int, with_rows: bool) -> Tally:
    return Tally(name_of(campaign), seed, rows=[] if with_rows else None)


def name_of(campaign: ModuleType) -> str:
    """Returns the name of a campaign."""
    return campaign.__name__.rpartition(".")[2]


def _work(
    campaign: ModuleType,
    seed: int,
    home: Path,
    numbers: Iterable[int],
    seconds: float,
    with_rows: bool,
    pipe: Connection,
    now: Any,
) -> None:
    shutil.rmtree(home, ignore_errors=True)
    # They are shown to people at a terminal; here there would be thousands.
    warnings.simplefilter("ignore", RunWarning)
    stack = ExitStack()
    stack.enter_context(limited_memory(campaign))
    try:
        prepare(campaign, home)
    except BaseException:
        pipe.send(f"{name_of(campaign)} cannot be prepared:\n{traceback.format_exc()}")
        raise
    until = time.time() + seconds if seconds else float("inf")
    tally, sent = _tally(campaign, seed, with_rows), time.time()
    for number in numbers:
        began = time.time()
        if began > until:
            break
        if began - sent > 1:
            pipe.send(tally)
            tally, sent = _tally(campaign, seed, with_rows), began
            now[2] = number
        now[1] = began
        now[0] = number
        tally.add(number, run_case(campaign, seed, number, home))
    pipe.send(tally)
    pipe.send(None)
    pipe.close()


def _collect(worker: _Worker, total: Tally) -> str:
    """Takes what a process has sent; returns "finished", "died" or, while it works, ""."""
    try:
        while worker.pipe.poll():
            tally = worker.pipe.recv()
            if tally is None:
                return "finished"
            if isinstance(tally, str):
                raise RuntimeError(tally)
            total.merge(tally)
    except EOFError:
        return "died"
    return ""


def _overdue(worker: _Worker, limit: float) -> str:
    """Returns "hung" where not even an alarm ends a case, and ends its process; else ""."""
    if time.time() - worker.now[1] < limit + _SECONDS_OF_GRACE:
        return ""
    worker.process.kill()
    return "hung"


def write_rows(tally: Tally, path: Path) -> None:
    """Writes every result as a row of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[Mapping[str, Any]] = [
        {"campaign": tally.campaign, "seed": tally.seed, "case": number, **result._asdict()}
        for number, result in tally.rows or []
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
