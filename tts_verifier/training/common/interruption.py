"""Ctrl-C and SIGTERM while a run trains: it ends after the step, with its state kept."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any


class Interruption:
    """Inside the `with` block, the first Ctrl-C or SIGTERM is only noted, for a loop to end itself.

    A second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread, where Python answers
    no signals, and for signals that this process ignores, the block changes nothing.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    @property
    def asked(self) -> bool:
        """Whether there was a signal."""
        return self._number is not None

    def raise_if_asked(self) -> None:
        """Does what the signal would have done. Call it when all is kept.

        Raises:
            KeyboardInterrupt: it was Ctrl-C.
            SystemExit: it was SIGTERM. The status is the one that shells report then, 143.
        """
        if self._number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._number is not None:
            raise SystemExit(128 + self._number)

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # None = a handler that is not Python's.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked worker. A terminal sends Ctrl-C to it too, though the run needs it; SIGTERM
            # is how the run ends it.
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._number = self._number or number
        # Not `print`, which the signal may have interrupted. Nobody may read it any more.
        with suppress(OSError):
            os.write(2, b"\nStopping after this step or the next. Ctrl-C stops at once.\n")
