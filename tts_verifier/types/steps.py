"""Reports how far a generator is within its batch, to a listener in the same thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

StepListener = Callable[[int, int], object]
"""Receives the number of steps taken, and of all steps of the batch."""

_LISTENER: Final[ContextVar[StepListener | None]] = ContextVar("step_listener", default=None)


def report_step(taken: int, total: int) -> None:
    """Reports how far the current batch is. A generator may call it after each step.

    Without a listener in the calling thread, nothing happens.

    Args:
        taken: steps taken, 1 or more.
        total: steps of the batch.
    """
    listener = _LISTENER.get()
    if listener is not None:
        listener(taken, total)


@contextmanager
def steps_heard(listener: StepListener) -> Iterator[None]:
    """Passes what this thread reports by `report_step` inside the `with` block to a listener."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
