"""Ctrl-C of a run on many processes: the first one stops them after their batch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether the user wants the run to stop."""

    def __init__(self) -> None:
        self.asked = False
        """True since the first Ctrl-C."""
        self.said = False
        """Whether the user has been told what comes of it."""


@contextmanager
def gentle_interrupts(stop: Callable[[], object]) -> Iterator[Interrupt]:
    """Calls `stop` at the first Ctrl-C; a second one raises KeyboardInterrupt as usual.

    At the end of the block a Ctrl-C that was answered by `stop` is raised after all. Threads other
    than the main one get no Ctrl-C.
    """
    interrupt = Interrupt()

    def answer(number: int, frame: FrameType | None) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, answer)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupt.asked:
        raise KeyboardInterrupt
