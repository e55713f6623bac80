"""The clock of a run, and what is due after each step: metrics, a line of progress, the state."""

from __future__ import annotations

import time

from accelerate import Accelerator

from tts_verifier.training.cold_start.settings import RunSettings
from tts_verifier.training.common.interruption import Interruption
from tts_verifier.training.common.run_folder import RunFolder
from tts_verifier.training.common.step_guard import StepGuard


class Clock:
    """Says when to print, to save and to stop, and how fast a run is.

    Args:
        run: its settings.
        first: the step that it goes on from.
        interruption: asks it to stop.
    """

    def __init__(self, run: RunSettings, first: int, interruption: Interruption) -> None:
        self._run, self._first, self._interruption = run, first, interruption
        self._began = self._printed = self._saved = self._last = time.monotonic()

    def flags(self) -> dict[str, float]:
        """Returns whether it is time to stop or to save, as numbers that processes can add."""
        now = time.monotonic()
        minutes = self._run.minutes
        stop = minutes is not None and now - self._began > 60 * minutes
        stop |= self._interruption.asked
        return {"stop": float(stop), "save": float(now - self._saved > 60 * self._run.save_minutes)}

    def saved(self) -> None:
        """Notes that the state was just saved."""
        self._saved = time.monotonic()

    def lap(self) -> float:
        """Returns the seconds since the last call, or since the beginning."""
        last, self._last = self._last, time.monotonic()
        return self._last - last

    def rate(self, step: int) -> float:
        """Returns the rows a second so far."""
        steps = step + 1 - self._first
        return steps * self._run.batch / max(time.monotonic() - self._began, 1e-9)

    def show(self, step: int, row: dict[str, float], skipped: int, *, last: bool) -> None:
        """Prints a line of progress if it is due, or if this is the last step."""
        now = time.monotonic()
        if now - self._printed < self._run.print_seconds and not last:
            return
        self._printed = now
        rate = self.rate(step)
        left = (self._run.steps - step - 1) * self._run.batch / rate
        if self._run.minutes is not None:
            left = min(left, max(60 * self._run.minutes - (now - self._began), 0.0))
        names = ("reward", "kl", "length", "total", "text", "answers", "misalignment", "artifact")
        losses = ", ".join(f"{n} {row[n]:.4f}" for n in names if n in row)
        lost = f", {skipped} steps skipped" if skipped else ""
        read = f"{rate * row['tokens'] / row['rows']:.0f} tokens/s, " if "tokens" in row else ""
        print(
            f"step {step + 1} of {self._run.steps}, {rate:.1f} rows/s, {read}{left:.0f} s left: "
            f"{losses}{lost}",
            flush=True,
        )


def record_step(
    row: dict[str, float],
    run: RunSettings,
    folder: RunFolder,
    clock: Clock,
    accelerator: Accelerator,
    guard: StepGuard,
    *,
    save: bool,
    last: bool,
) -> None:
    """Records and shows the metrics of a step, and keeps the state when it is time for that.

    Args:
        row: the metrics, with `step`; the rate and the seconds are added.
        run: says whether states are kept.
        folder: of the run.
        clock: of the run.
        accelerator: of the processes.
        guard: counts skipped steps.
        save: whether it is time.
        last: whether no step follows.
    """
    step = int(row["step"])
    row |= {"rows_per_second": clock.rate(step), "seconds": clock.lap()}
    folder.record(row)
    accelerator.log({k: v for k, v in row.items() if k != "step"}, step=step)
    if accelerator.is_main_process:
        clock.show(step, row, guard.skipped, last=last)
    if run.save_state and (save or last):
        folder.save(step + 1)
        clock.saved()
    elif last:
        folder.save_metrics()
