"""An engine that works in the test's own process, and one whose library is missing."""

from typing import Any

from tts_verifier.recipe.parallel_options import ParallelOptions


class InlineEngine:
    """Works on an item when it is asked for results. See `tts_verifier.parallel.WorkerEngine`."""

    workers = most = 2
    opened = 0

    def __init__(self, options: ParallelOptions, work: Any) -> None:
        type(self).opened += 1
        self._work, self._waiting = work, dict[int, Any]()

    def submit(self, key: int, item: Any) -> None:
        self._waiting[key] = item

    def take(self, seconds: float) -> list[tuple[int, Any]]:
        key = next(iter(self._waiting))
        return [(key, self._work(self._waiting.pop(key)))]

    def close(self, *, now: bool) -> None:
        self._waiting.clear()
