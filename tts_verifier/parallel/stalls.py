"""Which shards have had no new candidate for long: a worker that hangs would be silent for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_SILENT_SECONDS: Final = 60.0
"""A shard is named after so long. A batch of a large model may take longer, and harmlessly so."""


class Stalls:
    """Since when each shard under way has had no new candidate.

    Args:
        clock: returns seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[int, float]] = {}
        """Shard -> its candidates, and when it was first seen to have so many."""

    def note(self, shard: str, candidates: int) -> None:
        """Is told how many candidates a shard has."""
        if shard not in self._seen or self._seen[shard][0] != candidates:
            self._seen[shard] = (candidates, self._clock())

    def forget(self, shard: str) -> None:
        """Is told that a shard is done."""
        self._seen.pop(shard, None)

    def __str__(self) -> str:
        """Names the shard that is silent for longest; "" if none is."""
        now = self._clock()
        silent = {
            name: now - since
            for name, (_, since) in self._seen.items()
            if now - since >= _SILENT_SECONDS
        }
        if not silent:
            return ""
        name, seconds = max(silent.items(), key=lambda item: item[1])
        others = f" ({len(silent) - 1} more for less)" if len(silent) > 1 else ""
        # Whole minutes, so that a log of lines gets one a minute.
        return f"shard {name}: nothing new for {seconds // 60:.0f} min{others}"
