"""Counts how far a run is. `views` shows it.

Trials from the log count as done, but not for the rate and not for the fraction of busy time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from tts_verifier.types import Job, Trial


@dataclass(frozen=True, slots=True)
class ProgressCounts:
    """What was counted so far. Counts of several processes add up."""

    prompts: int = 0
    """Prompts of the run."""
    begun: int = 0
    """Prompts that have proposed."""
    rows_in_log: int = 0
    """Candidates that the log held at the start."""
    expected: int = 0
    """Candidates proposed so far."""
    from_log: int = 0
    """Candidates taken from the log."""
    new: int = 0
    """Candidates of this process."""
    failed: int = 0
    """Candidates with an error."""
    best: float = math.nan
    """The largest objective of a finished candidate; NaN until there is one."""
    busy_seconds: float = 0.0
    """Seconds of work on the new ones."""

    def __add__(self, other: ProgressCounts) -> ProgressCounts:
        names = [name for name in self.__slots__ if name != "best"]
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return ProgressCounts(**sums, best=_larger(self.best, other.best))


def _larger(one: float, other: float) -> float:
    # Not `>`: the first objective must replace NaN, with which every comparison is false.
    return one if math.isnan(other) or other <= one else other


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far a run is."""

    phase: str
    """What the run does now: `load`, `finish`, or the kind of proposal that it carries out."""
    done: int
    """Candidates that are verified, those of earlier processes included."""
    expected: int
    """Candidates that the run will have, as far as is known."""
    failed: int
    """Candidates with an error."""
    rate: float
    """Candidates a second of this process; NaN until the first one."""
    seconds_left: float
    """At this rate; NaN until the first candidate."""
    best: float
    """The largest objective of a finished candidate; NaN until there is one."""
    busy: float
    """The fraction of the time so far that was spent on generating or verifying; NaN until the
    first candidate."""
    step: int = 0
    """Steps that the generator has taken in the batch under way."""
    steps: int = 0
    """Steps of that batch; 0 = the generator has not said."""
    stalled: str = ""
    """Of a run in shards: which one has had no new candidate, and for how long; "" if all have."""


class Progress:
    """Counts what is done, and displays nothing; subclasses display it.

    Belongs to the thread that runs the loop.

    Args:
        clock: returns seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._phase, self._workers = "load", 1
        self._drawn_before, self._batch, self._steps = 0, 0, (0, 0)
        self._stalled = ""
        self.counts = ProgressCounts()
        """What was counted so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, prompts: int, rows_in_log: int) -> None:
        """Starts the clock.

        Args:
            prompts: how many the run has.
            rows_in_log: how many candidates the log holds at the start.
        """
        self._began = self._clock()
        self.counts = replace(self.counts, prompts=prompts, rows_in_log=rows_in_log)
        if rows_in_log:
            self.resume(rows_in_log)

    def resume(self, rows_in_log: int) -> None:
        """Reports that the run continues from a log with so many candidates."""

    def expect(self, count: int, *, new_prompt: bool = False) -> None:
        """Adds proposed candidates; `new_prompt` if they are the first ones of a prompt."""
        self.counts += ProgressCounts(expected=count, begun=int(new_prompt))

    def phase(self, name: str) -> None:
        """Sets what the run does now, such as "draw"."""
        self._phase = name
        self.show()

    def done(self, trials: Sequence[Trial], *, from_log: bool = False) -> None:
        """Adds candidates that are verified, by this process or, `from_log`, by an earlier one."""
        best = math.nan
        for trial in trials:
            if trial.finished:
                best = _larger(best, trial.objective)
        failed, count = sum(bool(trial.error) for trial in trials), len(trials)
        if from_log:
            self.counts += ProgressCounts(from_log=count, failed=failed, best=best)
        else:
            busy = sum(trial.cost.seconds for trial in trials)
            self.counts += ProgressCounts(new=count, failed=failed, best=best, busy_seconds=busy)
            if self.counts.new >= self._drawn_before + self._batch:
                # Nothing is under way; the steps of the last batch are no news any more.
                self._end_batch()
        self.show()

    def start(self, jobs: Sequence[Job], *, again: bool = False) -> None:
        """Notes the jobs that are generated next; called `again` when their images are verified."""
        if not again:
            self._end_batch()
            self._batch = len(jobs)

    def step(self, taken: int, total: int) -> None:
        """Notes how many of its steps the generator has taken for the current batch."""
        self._steps = (taken, total)
        self.show()

    @property
    def drawn(self) -> float:
        """Candidates generated but not verified yet; the current batch counts by its steps."""
        taken, total = self._steps
        batch = self._batch * taken / total if total else 0.0
        return max(self._drawn_before + batch - self.counts.new, 0.0)

    def _end_batch(self) -> None:
        self._drawn_before += self._batch
        self._batch, self._steps = 0, (0, 0)

    def show_counts(
        self, phase: str, counts: ProgressCounts, workers: int, *, stalled: str = ""
    ) -> None:
        """Shows what other processes have counted, in place of `begin`, `expect` and `done`.

        Args:
            phase: what they do.
            counts: the sum over them.
            workers: how many they are.
            stalled: as in `RunStatus`.
        """
        self._phase, self.counts, self._workers = phase, counts, workers
        self._stalled = stalled
        self.show()

    def status(self) -> RunStatus:
        """Returns the figures; a prompt that has not begun is expected to be like the others."""
        now = self.counts
        expected, from_log = now.expected, now.from_log
        if 0 < now.begun < now.prompts:
            expected = round(expected * now.prompts / now.begun)
            # Rows of prompts that have not begun count as done: they will be taken from the log.
            from_log = max(from_log, min(now.rows_in_log, expected - now.new))
        done, passed = from_log + now.new, self._clock() - self._began
        # NaN carries over to the time left below.
        rate = busy = math.nan
        if passed > 0 and now.new:
            # Both sides add their seconds, so where they overlap the sum may exceed the time.
            rate, busy = now.new / passed, min(now.busy_seconds / passed / self._workers, 1.0)
        left = (expected - done) / rate
        figures = (done, expected, now.failed, rate, left, now.best, busy)
        return RunStatus(self._phase, *figures, *self._steps, self._stalled)

    def show(self) -> None:
        """Shows the status; called after every change."""

    def close(self) -> None:
        """Ends the display; called at the end of the run."""
