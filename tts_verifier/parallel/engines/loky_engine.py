"""Worker processes of this machine, by joblib's loky.

Each worker is a pool of one process. It has its devices and its share of the threads in its
environment before torch is imported, and when it dies only its own pool ends, which is made again.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from joblib.externals.loky import ProcessPoolExecutor, process_executor
from joblib.externals.loky.backend import resource_tracker

from tts_verifier.parallel.engines.processes import (
    ITEM_DEATHS,
    begin_worker,
    gpus_here,
    starting_processes,
    thread_settings,
    too_many_deaths,
    worker_count,
)
from tts_verifier.recipe.parallel_options import ParallelOptions


class LokyEngine:
    """See `parallel.engine.WorkerEngine`."""

    def __init__(self, options: ParallelOptions, work: Any) -> None:
        gpus = gpus_here()
        self.workers, each = worker_count(options, len(gpus), "this machine has")
        # One item a worker: the next one is handed over within a millisecond.
        self.most = self.workers
        self._work = work
        threads = thread_settings(self.workers)
        devices = [",".join(gpus[i * each : (i + 1) * each]) for i in range(self.workers)]
        self._environments = [
            threads | ({"CUDA_VISIBLE_DEVICES": own} if each or gpus else {}) for own in devices
        ]
        self._pools: list[Any] = [None] * self.workers
        self._running: dict[Future[Any], tuple[int, int, Any]] = {}
        """Future -> number of the pool, key and item."""
        self._deaths = Counter[int]()

    def submit(self, key: int, item: Any) -> None:
        """Hands an item to a worker that is free."""
        busy = {number for number, _, _ in self._running.values()}
        free = [number for number in range(self.workers) if number not in busy]
        self._start(free[0], key, item)

    def take(self, seconds: float) -> list[tuple[int, Any]]:
        """Returns what is done; a worker that died is replaced, and its item starts again."""
        finished, _ = wait(self._running, timeout=seconds, return_when=FIRST_COMPLETED)
        done = []
        for future in finished:
            number, key, item = self._running.pop(future)
            try:
                done.append((key, future.result()))
                self._deaths.pop(key, None)
            except BrokenProcessPool as error:
                self._deaths[key] += 1
                if self._deaths[key] >= ITEM_DEATHS:
                    raise too_many_deaths(item, error) from error
                self._end_pool(number, now=True)
                self._start(number, key, item)
        return done

    def close(self, *, now: bool) -> None:
        """Ends the workers."""
        for number in range(self.workers):
            self._end_pool(number, now=now)

    def _start(self, number: int, key: int, item: Any) -> None:
        try:
            # The first item starts the process.
            with starting_processes(resource_tracker):
                if self._pools[number] is None:
                    self._pools[number] = ProcessPoolExecutor(
                        1,
                        initializer=_begin,
                        initargs=(os.getpid(),),
                        env=self._environments[number],
                    )
                future = self._pools[number].submit(self._work, item)
        except BrokenProcessPool:
            # It died while it had nothing to do.
            self._end_pool(number, now=True)
            self._start(number, key, item)
            return
        self._running[future] = (number, key, item)

    def _end_pool(self, number: int, *, now: bool) -> None:
        pool, self._pools[number] = self._pools[number], None
        if pool is not None:
            pool.shutdown(wait=True, kill_workers=now)


def _begin(parent: int) -> None:
    begin_worker(parent)
    # loky replaces a process that has grown by 300 MB since its first task. The buffers of models
    # grow by more, with the first large batch, and another process would load the models again.
    process_executor._MAX_MEMORY_LEAK_SIZE = math.inf
