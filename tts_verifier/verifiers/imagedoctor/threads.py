"""A thread for each device: they work together, and stop together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Thread

import torch


def run_together(works: Sequence[Callable[[], None]], stop: Callable[[], None]) -> None:
    """Runs the first function in this thread and every other one in its own, until all return.

    Args:
        works: run at once.
        stop: makes all functions return soon; called when one raises, and for Ctrl-C.

    Raises:
        BaseException: the first that was raised.
    """
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
            stop()

    threads = [Thread(target=guarded, args=(work,)) for work in works[1:]]
    try:
        for thread in threads:
            thread.start()
        guarded(works[0])
    except BaseException:
        stop()
        raise
    finally:
        _join(threads, stop)
    if errors:
        try:
            raise errors[0]
        finally:
            # The error holds this frame; the list would keep both alive, and tensors with them.
            errors.clear()


def _join(threads: Sequence[Thread], stop: Callable[[], None]) -> None:
    """Waits for the threads that have started, even after Ctrl-C: they use the engines."""
    interrupt: KeyboardInterrupt | None = None
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join()
            except KeyboardInterrupt as error:
                interrupt = error
                stop()
    if interrupt is not None:
        raise interrupt


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one: captured graphs and new streams go to the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
