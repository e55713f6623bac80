"""Measures what the log costs: best-of-8 with the bundled models, with a log and without.

    python examples/benchmarks/log_overhead.py --prompts 4 --pairs 4 --out overhead.parquet

The models are loaded once. After a warm-up, runs with a log (images and heatmaps included) and
without one alternate. The script measures the wall-clock seconds and the processor seconds of
every run, the seconds that the run's own thread spends in the log (these are on the critical
path), and the processor seconds of the log's threads. It prints the fastest run of each kind,
since other work on the machine can only slow a run down, and the median share of the log. Each
run becomes one row of the Parquet file.
"""

import argparse
import os
import resource
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import torch
from pyarrow import parquet

from tts_verifier.log import RunLog
from tts_verifier.log.environment import environment
from tts_verifier.log.storage.codecs import HeatmapCodec, ImageCodec, StateCodec
from tts_verifier.log.storage.files import Folder
from tts_verifier.recipe.recipe import load_recipe
from tts_verifier.runner import RunSetup, entry

ON_CRITICAL_PATH = (
    "unverified", "start_images", "append", "flush", "forget_states", "finish", "close",
)  # fmt: skip
"""Methods of `RunLog` that the run's thread calls."""
IN_LOG_THREADS = [
    (HeatmapCodec, "encode"), (ImageCodec, "encode"), (StateCodec, "encode"), (Folder, "write"),
]  # fmt: skip
"""What the log's threads do; what the run's own thread does of it is not counted again."""
Row = dict[str, Any]


class Clock:
    """Adds up the time that is spent in the log."""

    def __init__(self) -> None:
        self.seconds = {"log_seconds": 0.0, "log_cpu_seconds": 0.0}
        self._inside = False
        for name in ON_CRITICAL_PATH:
            setattr(RunLog, name, self._on_critical_path(getattr(RunLog, name)))
        entry.open_log = self._on_critical_path(entry.open_log)
        for owner, name in IN_LOG_THREADS:
            setattr(owner, name, self._in_log_threads(getattr(owner, name)))

    def _on_critical_path(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            if self._inside:
                # `finish` and `close` call `flush`, whose time is in theirs already.
                return work(*arguments, **named)
            self._inside, began = True, time.perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                self.seconds["log_seconds"] += time.perf_counter() - began
                self._inside = False

        return timed

    def _in_log_threads(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                return work(*arguments)
            began = time.thread_time()
            try:
                return work(*arguments)
            finally:
                self.seconds["log_cpu_seconds"] += time.thread_time() - began

        return timed


def timed_run(setup: RunSetup, prompts: Any, clock: Clock, *, logged: bool) -> Row:
    clock.seconds = dict.fromkeys(clock.seconds, 0.0)
    with TemporaryDirectory() if logged else nullcontext() as home:
        folder = Path(home) / "run" if home else None
        began, cpu = time.perf_counter(), time.process_time()
        result = entry.execute(setup, prompts, folder=folder, recipe={})
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder else 0
        candidates = sum(summary.candidates for summary in result.summaries)
    return {
        "logged": logged,
        "candidates": candidates,
        "seconds": seconds,
        "cpu_seconds": cpu,
        **clock.seconds,
        "bytes": size,
    }


def print_shares(rows: list[Row]) -> None:
    for name in ("seconds", "cpu_seconds"):
        off, on = (min(r[name] for r in rows if r["logged"] == logged) for logged in (False, True))
        print(f"{name}, fastest: {off:.2f} without a log, {on:.2f} with: {on / off - 1:+.1%}")
    logged = [row for row in rows if row["logged"]]
    share = median(row["log_seconds"] / row["seconds"] for row in logged)
    print(f"the run's own thread spends {share:.2%} of the time in the log")
    share = median(row["log_cpu_seconds"] / row["cpu_seconds"] for row in logged)
    print(f"the log's threads take {share:.2%} of the processor time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=4, help="of the main recipe")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True, help="Parquet, a row a run")
    options = parser.parse_args()
    recipe = load_recipe("bestofn")
    setup, prompts = recipe.build(), recipe.prompts[: options.prompts]
    clock, rows = Clock(), []
    timed_run(setup, prompts[:1], clock, logged=True)  # the warm-up
    for pair in range(options.pairs):
        # The order alternates: a machine that slows down over time then favours neither kind.
        for logged in (False, True) if pair % 2 else (True, False):
            rows.append({"pair": pair, **timed_run(setup, prompts, clock, logged=logged)})
    device = f"{environment()['device']}, {torch.get_num_threads()} threads"
    print(f"{device}; {rows[0]['candidates']} candidates a run, {options.pairs} pairs")
    print_shares(rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:.0f} MiB, load {os.getloadavg()[0]:.1f}")
    parquet.write_table(
        pa.Table.from_pylist([{"device": device, **row} for row in rows]), options.out
    )


if __name__ == "__main__":
    main()
