"""Runs a search in a thread and reports every candidate as soon as it is verified."""

from __future__ import annotations

import math
import queue
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tts_verifier.errors import TTSError
from tts_verifier.runner import RunSetup, as_prompts, execute
from tts_verifier.runner.progress import Progress
from tts_verifier.types import VERIFIES_ONLY, Continue, Look, Trial


class _EndedByVisitor(TTSError):
    """Somebody stopped the search; a `TTSError`, because the runner passes these on at once."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a search has found so far."""

    candidates: tuple[Trial, ...] = ()
    """One for each image, in the order in which they were drawn; a look replaces the trial that it
    looked at, and a continuation the unfinished one."""
    best: str | None = None
    """The id of the best candidate so far, or of the chosen one once the search is over."""
    doing: str = ""
    """What the search does now, such as "draw"; empty once it is over."""
    error: str = ""
    """Why the search ended early; the candidates until then are there."""


class _Reports(Progress):
    """Puts trials into a queue, and ends the search between two batches once `stop` is set."""

    def __init__(self, events: queue.Queue[Snapshot | None], stop: threading.Event) -> None:
        super().__init__()
        self._events, self._stop, self.now = events, stop, Snapshot(doing="load")

    def phase(self, name: str) -> None:
        if self._stop.is_set() and name != "finish":
            raise _EndedByVisitor
        super().phase(name)
        self._report(replace(self.now, doing=name))

    def done(self, trials: Sequence[Trial], *, from_log: bool = False) -> None:
        super().done(trials, from_log=from_log)
        found = _with_trials(self.now.candidates, trials)
        self._report(replace(self.now, candidates=found, best=_best(found)))

    def _report(self, now: Snapshot) -> None:
        self.now = now
        self._events.put(now)


def search(setup: RunSetup, prompt: str, stop: threading.Event) -> Iterator[Snapshot]:
    """Searches for one prompt.

    The search runs in a thread of its own. It ends, between two batches, when `stop` is set or
    when the iterator is closed, which waits for it: two searches never share a pipeline's batch.

    Args:
        setup: the parts and limits of the search.
        prompt: what the image should show.
        stop: set it to end the search early; the best candidate so far is then the last one's
            `best`.

    Yields:
        A snapshot after every change, and a last one whose `doing` is empty. Errors are its
        `error`; nothing is raised.
    """
    events: queue.Queue[Snapshot | None] = queue.Queue()
    reports = _Reports(events, stop)
    thread = threading.Thread(
        target=_search_in_thread, args=(setup, prompt, reports, events), daemon=True
    )
    thread.start()
    try:
        while (snapshot := events.get()) is not None:
            yield snapshot
    finally:
        stop.set()
        thread.join()


def _search_in_thread(
    setup: RunSetup, prompt: str, reports: _Reports, events: queue.Queue[Snapshot | None]
) -> None:
    chosen, error = None, ""
    try:
        result = execute(setup, as_prompts([prompt]), progress=reports)
        (choice,) = result.choices.values()
        chosen = choice.trial and choice.trial.id
    except _EndedByVisitor:
        error = "Stopped."
    except TTSError as problem:
        error = str(problem)
    except Exception as problem:
        # A fault of a part is shown beside what was drawn before it; the terminal has its place.
        traceback.print_exception(problem)
        error = f"{type(problem).__name__}: {problem}"
    events.put(replace(reports.now, best=chosen or reports.now.best, doing="", error=error))
    events.put(None)


def _with_trials(before: Sequence[Trial], new: Sequence[Trial]) -> tuple[Trial, ...]:
    """Returns one trial for each image."""
    found = {trial.id: trial for trial in before}
    for trial in new:
        if isinstance(trial.proposal, Look | Continue):
            # In the place of the trial that it looked at, or continued.
            parent = trial.parent_id
            found = {trial.id if i == parent else i: t for i, t in found.items()}
        elif isinstance(trial.proposal, VERIFIES_ONLY):
            continue
        found[trial.id] = trial
    return tuple(found.values())


def _best(trials: Sequence[Trial]) -> str | None:
    usable = [t for t in trials if t.finished and not math.isnan(t.objective)]
    return max(usable, key=lambda t: t.objective).id if usable else None
