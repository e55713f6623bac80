"""Carries out the cases of a campaign in processes of their own.

A process that hangs or dies is replaced by a new one, which goes on with the next case.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from faults.harness import (
    Result,
    Tally,
    limited_memory,
    name_of,
    new_tally,
    prepare,
    run_case,
)
from tts_verifier.errors import RunWarning

_SECONDS_OF_GRACE = 5
"""A case that even an alarm does not end gets this much more before its process is killed."""


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
    total = new_tally(campaign, seed, with_rows)
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
    tally, sent = new_tally(campaign, seed, with_rows), time.time()
    for number in numbers:
        began = time.time()
        if began > until:
            break
        if began - sent > 1:
            pipe.send(tally)
            tally, sent = new_tally(campaign, seed, with_rows), began
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
