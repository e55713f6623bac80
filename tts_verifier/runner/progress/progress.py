"""Counts how far a run is. `views` shows it.

Trials from the log count as done, but not for the rate and not for the fraction of busy time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from tts_verifier.types import Trial


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


class Progress:
    """Counts what is done, and displays nothing; subclasses display it.

    Belongs to the thread that runs the loop.

    Args:
        clock: returns seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._phase, self._best = "load", math.nan
        self._prompts = self._prompts_begun = self._rows_in_log = 0
        self._expected = self._from_log = self._new = self._failed = 0
        self._busy_seconds = 0.0

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
        self._began, self._prompts, self._rows_in_log = self._clock(), prompts, rows_in_log

    def expect(self, count: int, *, new_prompt: bool = False) -> None:
        """Adds proposed candidates; `new_prompt` if they are the first ones of a prompt."""
        self._expected += count
        self._prompts_begun += new_prompt

    def phase(self, name: str) -> None:
        """Sets what the run does now, such as "draw"."""
        self._phase = name
        self.show()

    def done(self, trials: Sequence[Trial], *, from_log: bool = False) -> None:
        """Adds candidates that are verified, by this process or, `from_log`, by an earlier one."""
        for trial in trials:
            self._failed += bool(trial.error)
            # Not `>`: the first objective must replace NaN, with which every comparison is false.
            if trial.finished and not trial.objective <= self._best:
                self._best = trial.objective
            if from_log:
                self._from_log += 1
            else:
                self._new += 1
                self._busy_seconds += trial.cost.seconds
        self.show()

    def status(self) -> RunStatus:
        """Returns the figures; a prompt that has not begun is expected to be like the others."""
        expected, from_log = self._expected, self._from_log
        if 0 < self._prompts_begun < self._prompts:
            expected = round(expected * self._prompts / self._prompts_begun)
            # Rows of prompts that have not begun count as done: they will be taken from the log.
            from_log = max(from_log, min(self._rows_in_log, expected - self._new))
        done, passed = from_log + self._new, self._clock() - self._began
        # NaN carries over to the time left below.
        rate = busy = math.nan
        if passed > 0 and self._new:
            # Both sides add their seconds, so where they overlap the sum may exceed the time.
            rate, busy = self._new / passed, min(self._busy_seconds / passed, 1.0)
        left = (expected - done) / rate
        return RunStatus(self._phase, done, expected, self._failed, rate, left, self._best, busy)

    def show(self) -> None:
        """Shows the status; called after every change."""

    def close(self) -> None:
        """Ends the display; called at the end of the run."""
