"""Workers of a Dask cluster: those that the address has, or processes of this machine.

Dask gives the task of a dead worker to another one, as often as `allowed-failures` says. A GPU a
worker is the user's to arrange: each `dask worker` has its own `CUDA_VISIBLE_DEVICES`.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from multiprocessing import resource_tracker
from queue import Empty, SimpleQueue
from typing import Any, Final, cast

import dask
from distributed import Client, LocalCluster, WorkerPlugin
from distributed.scheduler import KilledWorker
from distributed.utils import silence_logging_cmgr

from tts_verifier.errors import InputError, RunError
from tts_verifier.parallel.engines.processes import (
    ITEM_DEATHS,
    begin_worker,
    check_answers,
    check_speaks_dask,
    gpus_here,
    starting_processes,
    thread_settings,
    too_many_deaths,
    worker_count,
)
from tts_verifier.recipe.parallel_options import ParallelOptions

_START_DASK: Final = (
    "Start it with `dask scheduler`, and a `dask worker tcp://HOST:8786 --nthreads 1` a GPU; or "
    "leave out address to use this machine."
)
_CONNECT_SECONDS: Final = 30.0


class DaskEngine:
    """See `parallel.engine.WorkerEngine`."""

    def __init__(self, options: ParallelOptions, work: Any) -> None:
        self._work, self._cluster = work, cast(Any, None)
        if options.address is None:
            self._client = self._start_here(options)
        else:
            self._client = _join_dask(options.address)
        try:
            self._prepare(options)
        except BaseException:
            self.close(now=True)
            raise
        # The scheduler keeps the second item of a worker, and gives it to one that is free first.
        self.most = 2 * self.workers
        self._running: dict[Any, tuple[int, Any]] = {}
        """Future -> key and item."""
        self._done: SimpleQueue[Any] = SimpleQueue()
        """Futures that are done, put by a thread of Dask. `as_completed` waits without a limit."""

    def submit(self, key: int, item: Any) -> None:
        """Hands an item to the scheduler."""
        future = self._client.submit(self._work, item, pure=False)
        self._running[future] = (key, item)
        future.add_done_callback(self._done.put)

    def take(self, seconds: float) -> list[tuple[int, Any]]:
        """Returns what is done."""
        finished = []
        with suppress(Empty):
            finished.append(self._done.get(timeout=seconds))
            while True:
                finished.append(self._done.get_nowait())
        done = []
        for future in finished:
            key, item = self._running.pop(future)
            try:
                done.append((key, future.result()))
            except KilledWorker as error:
                raise too_many_deaths(item, error) from error
        return done

    def close(self, *, now: bool) -> None:
        """Leaves the cluster, and ends it if this process started it."""
        if now and getattr(self, "_running", None):
            self._client.cancel(list(self._running))
        # A worker that is just starting would end with a traceback.
        with silence_logging_cmgr(logging.CRITICAL):
            if now and self._cluster is not None:
                self._kill_workers()
            self._client.close()
            if self._cluster is not None:
                self._cluster.close()

    def _kill_workers(self) -> None:
        # Closing a cluster waits for what its workers do.
        for nanny in self._cluster.workers.values():
            # Or it would start another one.
            nanny.close_gracefully()
            with suppress(OSError, TypeError):
                os.kill(nanny.pid, signal.SIGKILL)

    def _start_here(self, options: ParallelOptions) -> Client:
        gpus = gpus_here()
        if options.gpus or (gpus and options.gpus is None):
            raise InputError(
                f"dask without an address gives no worker a GPU of its own, and gpus is "
                f"{options.gpus or 'not given'} on a machine with {len(gpus)}. Use engine: loky, "
                "or start a `dask worker` with its own CUDA_VISIBLE_DEVICES for each GPU, or give "
                "gpus: 0.",
                argument="gpus",
            )
        workers, _ = worker_count(options, 0, "this machine has")
        dask.config.set(
            {
                # Dask gives up a local worker whose restart takes longer than 15 s, and then has
                # none.
                "distributed.deploy.lost-worker-timeout": "1 hour",
                # Looking at all threads a hundred times a second costs a quarter of a processor,
                # and fifty ticks a second a fortieth.
                "distributed.worker.profile.enabled": False,
                "distributed.admin.tick.interval": "500ms",
            }
        )
        # Its thread starts the processes, also those that replace others.
        with starting_processes(resource_tracker):
            self._cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                dashboard_address=None,
                # Dask would pause a worker at 80 % of its share of the memory, and kill it at 95 %.
                memory_limit=0,
                env=thread_settings(workers) | {"CUDA_VISIBLE_DEVICES": ""},
            )
        return Client(self._cluster)

    def _prepare(self, options: ParallelOptions) -> None:
        threads = self._client.nthreads()
        if not threads or max(threads.values()) > 1:
            raise RunError(
                f"A Dask cluster must have workers of one thread each, for a model has one user at "
                f"a time; {options.address} has workers of {sorted(threads.values()) or 'none'} "
                f"threads. {_START_DASK}"
            )
        if options.workers is not None and options.workers > len(threads):
            raise InputError(
                f"workers must be at most those of the Dask cluster, {len(threads)}, got "
                f"{options.workers}. Leave it out to use all.",
                argument="workers",
            )
        self.workers = options.workers or len(threads)
        for worker, gpus in self._client.run(gpus_here).items() if options.gpus else ():
            if len(gpus) < (options.gpus or 0):
                raise InputError(
                    f"gpus asks for {options.gpus} a worker, and the Dask worker {worker} sees "
                    f"{len(gpus)}. Start it with CUDA_VISIBLE_DEVICES of its own.",
                    argument="gpus",
                )
        self._client.run_on_scheduler(_allow_deaths)
        if self._cluster is not None:
            # A cluster's workers are others' too, and a Ctrl-C here does not reach them.
            self._client.register_plugin(_BeginWorker())


class _BeginWorker(WorkerPlugin):
    """Prepares every worker process, also one that replaces another."""

    name = "tts-begin-worker"

    def setup(self, worker: Any) -> None:
        begin_worker()
        # What a worker has to say it returns or raises. Heartbeats that fail at the end, and
        # tracebacks of what it raised, would fill the screen.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)


def _allow_deaths(dask_scheduler: Any) -> None:
    # A cluster may allow more.
    allowed = max(dask_scheduler.allowed_failures, ITEM_DEATHS - 1)
    dask_scheduler.allowed_failures = allowed


def _join_dask(address: str) -> Client:
    # Other protocols, such as TLS, let the client speak first.
    tcp = address.partition("://")[0] in ("tcp", address)
    check = check_speaks_dask if tcp else check_answers
    check(address, "a Dask scheduler", _START_DASK)
    try:
        return Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        raise RunError(
            f"No Dask scheduler answers at parallel.address {address}: {error}. {_START_DASK}"
        ) from error
