"""Runs the cases of a campaign and counts what came of them.

A case ends in one of these ways:

    right      the value that an independent calculation gives
    refused    an error of the package, with a message
    uncaught   any other exception
    wrong      another value, or none, without a word
    outside    a file outside the folder that was given changed
    slow       more processor time than the campaign allows, several times over
    hung       no end within the campaign's limit
    died       the process ended

The first two are as they should be. `processes.py` runs many cases at once.
"""

from __future__ import annotations

import random
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple

from faults.decoy import Decoy
from tts_verifier.errors import TTSError

RIGHT = ("right", "refused")
"""How cases should end."""
MEMORY = 3 * 2**30
"""Bytes that a process may take beside what it has at its start."""


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
    tally = new_tally(campaign, seed, True)
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


def new_tally(campaign: ModuleType, seed: int, with_rows: bool) -> Tally:
    """Returns a tally of nothing."""
    return Tally(name_of(campaign), seed, rows=[] if with_rows else None)


def name_of(campaign: ModuleType) -> str:
    """Returns the name of a campaign."""
    return campaign.__name__.rpartition(".")[2]


def write_rows(tally: Tally, path: Path) -> None:
    """Writes every result as a row of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[Mapping[str, Any]] = [
        {"campaign": tally.campaign, "seed": tally.seed, "case": number, **result._asdict()}
        for number, result in tally.rows or []
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
