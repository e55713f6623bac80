"""Shows a run's progress: a bar in a terminal, plain lines, or lines of JSON."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Final, Literal, Self, TextIO

from tts_verifier.runner.progress.progress import Progress, RunStatus

ProgressStyle = Literal["auto", "bar", "lines", "json", "none"]
_LINE_SECONDS: Final = 5.0
"""Seconds between two lines, at least."""


def progress_view(style: ProgressStyle) -> Progress:
    """Returns a display; "auto" is a bar in a terminal, else plain lines.

    JSON goes to the standard output, everything else to the standard error.
    """
    if style == "auto":
        style = "bar" if sys.stderr.isatty() else "lines"
    if style == "bar":
        return ProgressBar()
    if style == "lines":
        return ProgressLines(sys.stderr, status_line)
    if style == "json":
        return ProgressLines(sys.stdout, status_json, resumed=_resume_json)
    return Progress()


class ProgressBar(Progress):
    """One line in a terminal that changes in place; other output appears above it."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as RichProgress

        # Without a total the bar moves to and fro: models are being loaded.
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(None),
            TextColumn("{task.fields[figures]}"),
        )
        self._bar = RichProgress(
            *columns,
            console=Console(stderr=True),
            expand=True,
            # Text for a file does not belong on the terminal.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("load", total=None, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        # What is left of a run that an error ends is its message.
        self._bar.live.transient = error[0] is not None
        self.close()

    def resume(self, rows_in_log: int) -> None:
        """Prints it above the bar."""
        self._bar.console.print(resume_line(rows_in_log), highlight=False)

    def show(self) -> None:
        """Hands the status to rich, which draws it several times a second."""
        now = self.status()
        self._bar.update(
            self._task,
            total=now.expected or None,
            completed=min(now.done + self.drawn, now.expected),
            description=now.phase,
            figures="  ".join([f"{now.done}/{now.expected}", *_figures(now, short=True)]),
        )

    def close(self) -> None:
        """Stops the bar in its last state."""
        self._bar.stop()


class ProgressLines(Progress):
    """Prints a line every few seconds.

    Args:
        out: where to print.
        form: turns a status into a line.
        resumed: turns the number of candidates in the log into the line that is printed first.
        seconds: between two lines, at least.
        clock: as for `Progress`.
    """

    def __init__(
        self,
        out: TextIO,
        form: Callable[[RunStatus], str],
        *,
        resumed: Callable[[int], str] | None = None,
        seconds: float = _LINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(clock)
        self._out, self._form, self._seconds = out, form, seconds
        self._resumed = resumed or resume_line
        self._last_time, self._last_line = -math.inf, ("", 0, 0, "")

    def resume(self, rows_in_log: int) -> None:
        """Prints it as a line of its own."""
        print(self._resumed(rows_in_log), file=self._out, flush=True)

    def show(self) -> None:
        """Prints a line if the last one is old enough."""
        if self._clock() - self._last_time >= self._seconds:
            self._print()

    def close(self) -> None:
        """Prints the last status, unless the last line shows it already."""
        self._print()

    def _print(self) -> None:
        now = self.status()
        line = (now.phase, now.done, now.step, now.stalled)
        # While models are loaded there is nothing to say.
        if any(line[1:]) and self._last_line != line:
            print(self._form(now), file=self._out, flush=True)
            self._last_line, self._last_time = line, self._clock()


def status_line(now: RunStatus) -> str:
    """Returns a status as a line of text."""
    return ", ".join([f"{now.phase}: {now.done} of {now.expected} candidates", *_figures(now)])


def resume_line(rows_in_log: int) -> str:
    """Returns the message of a run that continues from a log."""
    return f"Resuming: the log of this run holds {rows_in_log} candidates already."


def _resume_json(rows_in_log: int) -> str:
    return json.dumps({"event": "resume", "candidates": rows_in_log})


def status_json(now: RunStatus) -> str:
    """Returns a status as a line of JSON; a figure that is not known yet is null."""
    # JSON has no NaN.
    fields = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(now).items()
    }
    return json.dumps({"event": "progress", **fields})


def _figures(now: RunStatus, *, short: bool = False) -> list[str]:
    """Returns the figures that are known already, as text."""
    figures = [now.stalled] if now.stalled else []
    if 0 < now.step < now.steps:
        figures.append(f"step {now.step}{'/' if short else ' of '}{now.steps}")
    elif now.step:
        # The last step is followed by decoding, and by verification, which have none.
        figures.append("verifying")
    if math.isfinite(now.rate):
        rate = f"{now.rate:.2f}" if now.rate < 10 else f"{now.rate:.0f}"
        figures += [
            f"{rate}{'/s' if short else ' a second'}",
            f"{_duration(now.seconds_left)} left",
        ]
    if math.isfinite(now.best):
        figures.append(f"best {now.best:.3f}")
    if now.failed:
        figures.append(f"{now.failed} failed")
    # In a terminal of 80 columns there is no room for it.
    if math.isfinite(now.busy) and not short:
        figures.append(f"busy {now.busy:.0%}")
    return figures


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
