"""What the log costs the main job: the bundled models' best-of-8, with a log and without.

    python examples/benchmarks/log_overhead.py --prompts 4 --pairs 4 --out overhead.parquet

The models are loaded once; runs with a log (pictures and heatmaps included) and without take
turns, a warm-up first. Of every run: seconds on the wall, processor seconds of the process, the
seconds that the run's own thread spent in the log, which is what lies on the critical path, and
the processor seconds of the threads that work beside it. Printed: the fastest of each
kind, since other work on the machine only adds, and the shares of the log (medians). A row a
run goes to Parquet.
"""

import argparse
import os
import resource
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

from tts_verifier.environment import environment
from tts_verifier.log import RunLog
from tts_verifier.recipe import load_recipe
from tts_verifier.runner import loop
from tts_verifier.runner.setup import Search

IN_RUN = ("waiting", "drawn", "append", "flush", "forget_states", "finish", "close")
BESIDE = ("_saved", "_note", "_write", "_delete")
"""Methods of `RunLog` that the run's thread calls, and those that the log's threads do."""
Row = dict[str, Any]


class Clock:
    """Adds up the time that is spent in the log."""

    def __init__(self) -> None:
        self.seconds = {"log_seconds": 0.0, "log_cpu_seconds": 0.0}
        self._inside = False
        for name in IN_RUN:
            setattr(RunLog, name, self._in_run(getattr(RunLog, name)))
        loop.open_log = self._in_run(loop.open_log)
        for name in BESIDE:
            setattr(RunLog, name, self._beside(getattr(RunLog, name)))

    def _in_run(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def run_it(*arguments: Any, **named: Any) -> Any:
            if self._inside:
                # `finish` and `close` flush: that is in their time already.
                return work(*arguments, **named)
            self._inside, began = True, time.perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                self.seconds["log_seconds"] += time.perf_counter() - began
                self._inside = False

        return run_it

    def _beside(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def run_it(*arguments: Any) -> Any:
            began = time.thread_time()
            try:
                return work(*arguments)
            finally:
                self.seconds["log_cpu_seconds"] += time.thread_time() - began

        return run_it


def once(search: Search, prompts: Any, clock: Clock, *, logged: bool) -> Row:
    clock.seconds = dict.fromkeys(clock.seconds, 0.0)
    with TemporaryDirectory() if logged else nullcontext() as home:
        folder = Path(home) / "run" if home else None
        began, cpu = time.perf_counter(), time.process_time()
        result = loop.execute(search, prompts, folder=folder, recipe={})
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder else 0
    rows = sum(summary.candidates for summary in result.summaries)
    return {
        "logged": logged,
        "candidates": rows,
        "seconds": seconds,
        "cpu_seconds": cpu,
        **clock.seconds,
        "bytes": size,
    }


def tell(rows: list[Row]) -> None:
    for name in ("seconds", "cpu_seconds"):
        off, on = (min(r[name] for r in rows if r["logged"] == logged) for logged in (False, True))
        print(f"{name}, fastest: {off:.2f} without a log, {on:.2f} with: {on / off - 1:+.1%}")
    logged = [row for row in rows if row["logged"]]
    share = median(row["log_seconds"] / row["seconds"] for row in logged)
    print(f"the run's own thread is in the log for {share:.2%} of the time")
    share = median(row["log_cpu_seconds"] / row["cpu_seconds"] for row in logged)
    print(f"the log's threads, beside it, take {share:.2%} of the processor time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=4, help="of the main recipe")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True, help="Parquet, a row a run")
    options = parser.parse_args()
    recipe = load_recipe("bestofn")
    search, prompts = recipe.build(), recipe.prompts[: options.prompts]
    clock, rows = Clock(), []
    once(search, prompts[:1], clock, logged=True)
    for pair in range(options.pairs):
        # In turns, so that a drift of the machine favours neither.
        for logged in (False, True) if pair % 2 else (True, False):
            rows.append({"pair": pair, **once(search, prompts, clock, logged=logged)})
    device = f"{environment()['device']}, {torch.get_num_threads()} threads"
    print(f"{device}; {rows[0]['candidates']} candidates a run, {options.pairs} pairs")
    tell(rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:.0f} MiB, load {os.getloadavg()[0]:.1f}")
    parquet.write_table(
        pa.Table.from_pylist([{"device": device, **row} for row in rows]), options.out
    )


if __name__ == "__main__":
    main()
