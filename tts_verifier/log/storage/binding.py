"""What binds tables to their run, and rows to the times of their files."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

TICK: Final = 50_000_000
"""Nanoseconds; the times of two changes that are this far apart differ on every file system."""
MOST_ROWS: Final = 2**27
"""A table that says it has more is no run's: numbers of its rows would fill the memory."""
_RUN: Final = b"tts_run"
_WRITTEN: Final = b"tts_files_written"


@dataclass(frozen=True, slots=True)
class Binding:
    """What binds tables to their run, as the header says it."""

    run: str = ""
    """The run's id; "" in logs before schema 3, whose tables name no run."""
    table: tuple[str, ...] = ()
    """Digests that the finished table may have."""
    unbound: frozenset[str] = frozenset()
    """The first 16 digits of the digests of tables that are older than schema 3."""

    def metadata(self, written: NDArray[np.int64]) -> dict[bytes, bytes]:
        """Returns the metadata of a table of the run.

        Args:
            written: for each row, when its files were last changed, as `changed_at`; 0 = unknown.
        """
        # Rows of one batch have one time: runs of equal times are short to write.
        cuts = np.flatnonzero(np.diff(written)) + 1
        starts = np.concatenate([[0], cuts]) if len(written) else cuts
        counts = np.diff([*starts, len(written)])
        spans = [counts.tolist(), written[starts].tolist()]
        return {_RUN: self.run.encode(), _WRITTEN: json.dumps(spans).encode()}


def run_of(metadata: Any) -> str:
    """Returns the id of the run that a Parquet file's metadata name, "" if they name none."""
    return str((metadata.metadata or {}).get(_RUN, b"").decode())


def files_written(metadata: Any, about: os.stat_result) -> NDArray[np.int64]:
    """Returns for each row of a table when its files were last changed; 0 = unknown.

    Args:
        metadata: the Parquet file's.
        about: the file's.

    Raises:
        ValueError, TypeError: the metadata are not what `Binding.metadata` gave.
    """
    spans, rows = (metadata.metadata or {}).get(_WRITTEN), metadata.num_rows
    if not 0 <= rows <= MOST_ROWS:
        raise ValueError(f"it says that it has {rows} rows")
    if spans is None:
        # Before schema 3: the files were there before the table.
        return np.full(rows, min(about.st_mtime_ns, about.st_ctime_ns) - TICK, np.int64)
    counts, times = json.loads(spans)
    # As Python's integers: a sum that overflows fits by chance, and `repeat` then writes anywhere.
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != rows:
        raise ValueError("its metadata are about other rows")
    if not all(type(time) is int and -(2**63) <= time < 2**63 for time in times):
        raise ValueError("its metadata have a time that no file can have")
    return np.repeat(np.array(times, np.int64), counts)
