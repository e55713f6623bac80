"""Runs calls in many threads at once, with a switch between threads as often as possible."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from threading import Barrier, Thread
from typing import Any


def at_once(works: Sequence[Callable[[], Any]], *, timeout: float = 600) -> list[Any]:
    """Runs every function in a thread of its own; returns what each returned or raised."""
    results: list[Any] = [None] * len(works)
    start = Barrier(len(works))

    def run(place: int) -> None:
        start.wait()
        try:
            results[place] = works[place]()
        except BaseException as error:
            results[place] = error

    threads = [Thread(target=run, args=(place,), daemon=True) for place in range(len(works))]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout)
        assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"
    finally:
        sys.setswitchinterval(before)
    return results
