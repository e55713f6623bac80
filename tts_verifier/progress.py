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
from typing import Any, Final, Literal, Self, TextIO

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
        self._phase, self._best = "start", math.nan
        self._done = self._expected = self._failed = self._fresh = 0
        self._busy = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def expect(self, count: int) -> None:
        """Says that more candidates were proposed."""
        self._expected += count

    def phase(self, name: str) -> None:
        """Says what is done now, such as "draw"."""
        self._phase = name
        self.show()

    def done(self, trials: Sequence[Trial], *, known: bool = False) -> None:
        """Says that candidates were judged; `known` ones were in the log already."""
        self._done += len(trials)
        for trial in trials:
            self._failed += bool(trial.error)
            if trial.finished and not trial.objective <= self._best:
                self._best = trial.objective
            if not known:
                self._fresh += 1
                self._busy += trial.cost.draw_seconds + trial.cost.judge_seconds
        self.show()

    def standing(self) -> Standing:
        """Returns the figures."""
        passed = self._clock() - self._began
        rate = self._fresh / passed if passed > 0 and self._fresh else math.nan
        left = (self._expected - self._done) / rate
        busy = min(self._busy / passed, 1.0) if passed > 0 else math.nan
        return Standing(
            self._phase, self._done, self._expected, self._failed, rate, left, self._best, busy
        )

    def show(self) -> None:
        """Is called after every change."""

    def close(self) -> None:
        """Is called at the end."""


class Bar(Progress):
    """One line in a terminal that changes in place."""

    def __init__(self) -> None:
        super().__init__()
        from tqdm import tqdm

        self._bar: Any = tqdm(total=0, unit=" candidates", dynamic_ncols=True)

    def show(self) -> None:
        """Draws the bar, as often as tqdm wants."""
        now = self.standing()
        self._bar.total = now.expected
        self._bar.set_description_str(now.phase, refresh=False)
        words = [f"busy {now.busy:.0%}"] if math.isfinite(now.busy) else []
        words += [f"best {now.best:.3f}"] if math.isfinite(now.best) else []
        words += [f"{now.failed} failed"] if now.failed else []
        self._bar.set_postfix_str(", ".join(words), refresh=False)
        self._bar.update(now.done - self._bar.n)

    def close(self) -> None:
        """Leaves the last state of the bar."""
        self._bar.refresh()
        self._bar.close()


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
        if self._clock() - self._last >= self._seconds and self._done:
            self._last = self._clock()
            self._say()

    def close(self) -> None:
        """Writes where it ended, if that was not said."""
        self._say()

    def _say(self) -> None:
        now = self.standing()
        if self._said != (now.phase, now.done):
            print(self._form(now), file=self._out, flush=True)
            self._said = (now.phase, now.done)


def as_line(now: Standing) -> str:
    """Returns the figures as a person reads them."""
    words = [f"{now.phase}: {now.done} of {now.expected} candidates"]
    if math.isfinite(now.rate):
        rate = f"{now.rate:.2f}" if now.rate < 10 else f"{now.rate:.0f}"
        words += [f"{rate} a second", f"{_span(now.seconds_left)} left"]
    if math.isfinite(now.best):
        words.append(f"best {now.best:.3f}")
    if now.failed:
        words.append(f"{now.failed} failed")
    if math.isfinite(now.busy):
        words.append(f"busy {now.busy:.0%}")
    return ", ".join(words)


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
