"""A thread that does what it is given, one thing after another."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any


class Worker:
    """Takes work from any thread; `name` is its thread's."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._given: list[Future[None]] = []
        self._turn = Lock()

    def give(self, most: int, work: Callable[..., None], *arguments: Any) -> None:
        """Has work done after all that was given before, once but `most` of that is done.

        Raises:
            Exception: what earlier work raised and nobody was told.
        """
        self.wait(most)
        with self._turn:
            self._given.append(self._thread.submit(work, *arguments))

    def wait(self, most: int = 0) -> None:
        """Waits until all that was given so far but the last `most` is done.

        Raises:
            Exception: what that work raised and nobody was told.
        """
        with self._turn:
            given = list(self._given)
        for place, work in enumerate(given):
            if place < len(given) - most or work.done():
                self._take(work)

    def close(self) -> None:
        """Ends the thread when all is done."""
        self._thread.shutdown()

    def _take(self, work: Future[None]) -> None:
        work.exception()  # waits
        with self._turn:
            if work not in self._given:
                return  # another thread was told
            self._given.remove(work)
        work.result()
