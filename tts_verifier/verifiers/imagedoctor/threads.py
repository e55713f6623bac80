"""A thread for each device: they work together, and stop together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Event, Thread
from typing import Final

import torch

WAKE_SECONDS: Final = 0.1
"""How long a thread waits for others before it checks for Ctrl-C. A Ctrl-C just before a wait does
not end the wait."""


def run_together(works: Sequence[Callable[[], None]], stop: Callable[[], None]) -> None:
    """Runs the first function in this thread and every other one in its own, until all return.

    Args:
        works: run at once.
        stop: makes all functions return soon; called when one raises, and for Ctrl-C.

    Raises:
        BaseException: the first that was raised.
    """
    errors: list[BaseException] = []
    ends = [Event() for _ in works[1:]]
    begun: list[Event] = []
    stopping = Event()

    def fail(error: BaseException) -> None:
        errors.append(error)
        stopping.set()
        stop()

    def guarded(work: Callable[[], None], end: Event) -> None:
        begun.append(end)
        try:
            if not stopping.is_set():
                work()
        except BaseException as error:
            fail(error)
        finally:
            end.set()

    threads = [Thread(target=guarded, args=pair) for pair in zip(works[1:], ends, strict=True)]
    started = ended = False
    while not ended:
        # Ctrl-C may come anywhere in here; the threads use the engines until they have ended. Not
        # `Thread.join`, which takes a thread for ended once it was interrupted.
        try:
            if not started:
                started = True
                for thread in threads:
                    thread.start()
                works[0]()
            ended = all(end.wait(WAKE_SECONDS) for end in (begun if stopping.is_set() else ends))
        except BaseException as error:
            fail(error)
    if errors:
        try:
            raise errors[0]
        finally:
            # The error holds this frame; the list would keep both alive, and tensors with them.
            errors.clear()


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one: captured graphs and new streams go to the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
