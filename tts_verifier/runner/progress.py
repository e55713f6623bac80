"""How a run tells how it goes: a bar in a terminal, else plain lines, or JSON, or nothing.

What came from the log counts as done but not for the rate. The busy share is that of the
wall clock in which something was drawn or judged.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self, TextIO

from tts_verifier.types import Trial

Style = Literal["auto", "bar", "lines", "json", "none"]
_SECONDS: Final = 10.0
"""Between two plain lines."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands. `rate`: candidates a second; NaN and `best` NaN = not known yet."""

    phase: str
    done: int
    expected: int
    failed: int
    rate: float
    seconds_left: float
    best: float
    busy: float


class Progress:
    """Counts what is done and shows it; silent by itself.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._phase, self._best = "load", math.nan
        self._prompts = self._asked = self._logged = 0
        self._expected = self._known = self._fresh = self._failed = 0
        self._busy = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, prompts: int, known: int) -> None:
        """Starts the clock, and says how many prompts there are, and candidates in the log."""
        self._began, self._prompts, self._logged = self._clock(), prompts, known

    def expect(self, count: int, *, new: bool = False) -> None:
        """Says that more candidates were proposed; `new`: the first ones of a prompt."""
        self._expected += count
        self._asked += new

    def phase(self, name: str) -> None:
        """Says what is done now, such as "draw"."""
        self._phase = name
        self.show()

    def done(self, trials: Sequence[Trial], *, known: bool = False) -> None:
        """Says that candidates were judged; `known` ones were in the log already."""
        for trial in trials:
            self._failed += bool(trial.error)
            if trial.finished and not trial.objective <= self._best:
                self._best = trial.objective
            if known:
                self._known += 1
            else:
                self._fresh += 1
                self._busy += trial.cost.seconds
        self.show()

    def standing(self) -> Standing:
        """Returns the figures; prompts that were not asked yet are expected to be as the others."""
        expected, known = self._expected, self._known
        if 0 < self._asked < self._prompts:
            expected = round(expected * self._prompts / self._asked)
            known = max(known, min(self._logged, expected - self._fresh))
        done, passed = known + self._fresh, self._clock() - self._began
        rate = self._fresh / passed if passed > 0 and self._fresh else math.nan
        left = (expected - done) / rate
        busy = min(self._busy / passed, 1.0) if passed > 0 and self._fresh else math.nan
        return Standing(self._phase, done, expected, self._failed, rate, left, self._best, busy)

    def show(self) -> None:
        """Is called after every change."""

    def close(self) -> None:
        """Is called at the end."""


class Bar(Progress):
    """One line in a terminal that changes in place; what else is printed appears above it."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bars

        # A bar without a total moves to and fro, which says that models are being loaded.
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(None),
            TextColumn("{task.fields[words]}"),
        )
        self._bar = Bars(*columns, console=Console(stderr=True), expand=True)
        self._task = self._bar.add_task("load", total=None, words="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def show(self) -> None:
        """Says what is new; rich draws it, several times a second."""
        now = self.standing()
        words = "  ".join([f"{now.done}/{now.expected}", *_figures(now, short=True)])
        self._bar.update(
            self._task,
            total=now.expected or None,
            completed=now.done,
            description=now.phase,
            words=words,
        )

    def close(self) -> None:
        """Leaves the last state of the bar."""
        self._bar.stop()


class Lines(Progress):
    """A line now and then, as text or as JSON.

    Args:
        out: where to.
        form: Standing -> a line.
        seconds: between two lines.
    """

    def __init__(
        self,
        out: TextIO,
        form: Callable[[Standing], str],
        *,
        seconds: float = _SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(clock)
        self._out, self._form, self._seconds = out, form, seconds
        self._last, self._said = -math.inf, ("", 0)

    def show(self) -> None:
        """Writes a line if the last one is old enough."""
        if self._clock() - self._last >= self._seconds:
            self._last = self._clock()
            self._say()

    def close(self) -> None:
        """Writes where it ended, if that was not said."""
        self._say()

    def _say(self) -> None:
        now = self.standing()
        if now.done and self._said != (now.phase, now.done):
            print(self._form(now), file=self._out, flush=True)
            self._said = (now.phase, now.done)


def as_line(now: Standing) -> str:
    """Returns the figures as a person reads them."""
    return ", ".join([f"{now.phase}: {now.done} of {now.expected} candidates", *_figures(now)])


def _figures(now: Standing, *, short: bool = False) -> list[str]:
    words = []
    if math.isfinite(now.rate):
        rate = f"{now.rate:.2f}" if now.rate < 10 else f"{now.rate:.0f}"
        words += [f"{rate}{'/s' if short else ' a second'}", f"{_span(now.seconds_left)} left"]
    if math.isfinite(now.best):
        words.append(f"best {now.best:.3f}")
    if now.failed:
        words.append(f"{now.failed} failed")
    if math.isfinite(now.busy):
        words.append(f"busy {now.busy:.0%}")
    return words


def as_json(now: Standing) -> str:
    """Returns the figures as JSON; one that is not known is null."""
    fields = {name: getattr(now, name) for name in Standing.__slots__}
    known = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }
    return json.dumps({"event": "progress", **known})


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def shown_as(style: Style) -> Progress:
    """Returns what shows a run; "auto" is a bar in a terminal, else plain lines.

    JSON goes to the standard output, all else to the standard error.
    """
    if style == "auto":
        style = "bar" if sys.stderr.isatty() else "lines"
    if style == "bar":
        return Bar()
    if style == "lines":
        return Lines(sys.stderr, as_line)
    if style == "json":
        return Lines(sys.stdout, as_json)
    return Progress()
