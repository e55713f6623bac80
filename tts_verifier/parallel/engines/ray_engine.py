"""Workers on a Ray cluster, or on this machine: one actor each.

Ray restarts an actor that died, and repeats its task. An actor whose machine is gone waits until
the cluster has room for it.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any, Final

import ray
import ray.exceptions

from tts_verifier.errors import RunError
from tts_verifier.parallel.engines.processes import (
    ITEM_DEATHS,
    begin_worker,
    check_answers,
    check_speaks_grpc,
    cores,
    gpus_here,
    thread_settings,
    too_many_deaths,
    worker_count,
)
from tts_verifier.recipe.parallel_options import ParallelOptions

_START_RAY: Final = (
    "Start it with `ray start --head` there, or leave out address to use this machine."
)
_INTERRUPT_SECONDS: Final = 0.2


class _Worker:
    """What an actor holds."""

    def __init__(self, work: Any, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        begin_worker()
        self._work = work

    def run(self, item: Any) -> Any:
        return self._work(item)


class RayEngine:
    """See `parallel.engine.WorkerEngine`."""

    def __init__(self, options: ParallelOptions, work: Any) -> None:
        self._owns = not ray.is_initialized()
        if self._owns and options.address is None:
            # Before Ray starts, which is told to have as many processors as there are workers.
            worker_count(options, len(gpus_here()), "this machine has")
        _join_ray(options)
        try:
            there = ray.cluster_resources()
            self.workers, each = worker_count(
                options,
                int(there.get("GPU", 0)),
                "the Ray cluster has",
                cpus=int(there.get("CPU", 1)),
            )
        except BaseException:
            self.close(now=True)
            raise
        self.most = self.workers
        threads = thread_settings(self.workers) if options.address is None else {}
        # Without CPUs of its own an actor starts wherever there is a GPU, or anywhere.
        actor: Any = ray.remote(
            num_cpus=0, num_gpus=each, max_restarts=-1, max_task_retries=ITEM_DEATHS - 1
        )
        self._actors = [actor(_Worker).remote(work, threads) for _ in range(self.workers)]
        self._running: dict[Any, tuple[int, int, Any]] = {}
        """Reference -> number of the actor, key and item."""

    def submit(self, key: int, item: Any) -> None:
        """Hands an item to an actor that is free."""
        busy = {number for number, _, _ in self._running.values()}
        number = next(number for number in range(self.workers) if number not in busy)
        self._running[self._actors[number].run.remote(item)] = (number, key, item)

    def take(self, seconds: float) -> list[tuple[int, Any]]:
        """Returns what is done."""
        finished: list[Any] = []
        deadline = time.monotonic() + seconds
        while not finished and (left := deadline - time.monotonic()) > 0:
            # Python answers Ctrl-C when this returns, and of two before that only one.
            most = min(left, _INTERRUPT_SECONDS)
            finished, _ = ray.wait(list(self._running), num_returns=1, timeout=most)
        done = []
        for reference in finished:
            _, key, item = self._running.pop(reference)
            try:
                done.append((key, ray.get(reference)))
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from error
            except ray.exceptions.ActorUnavailableError as error:
                raise too_many_deaths(item, error) from error
            except ray.exceptions.RayError as error:
                raise RunError(
                    f"A worker on the Ray cluster cannot work: {error}. Every node needs this "
                    "package in the same version; the same command goes on from there."
                ) from error
        return done

    def close(self, *, now: bool) -> None:
        """Ends the actors, and Ray if this process started it."""
        if self._owns:
            # Its actors end with it.
            ray.shutdown()
            return
        for actor in getattr(self, "_actors", ()):
            ray.kill(actor)


def _join_ray(options: ParallelOptions) -> None:
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if options.address is None:
            ray.init(
                num_cpus=max(options.workers or 1, cores()),
                num_gpus=len(gpus_here()),
                include_dashboard=False,
                **quiet,
            )
        else:
            # With TLS, the first bytes are others.
            tls = os.environ.get("RAY_USE_TLS", "0") not in ("0", "")
            (check_answers if tls else check_speaks_grpc)(options.address, "ray", _START_RAY)
            ray.init(address=options.address, **quiet)
    except RunError:
        raise
    except Exception as error:
        if options.address is None:
            # Such as an argument of the command that is no valid Unicode, which Ray notes.
            raise RunError(
                f"Ray cannot start on this machine: {error!r:.500}. Mend that, or use engine: loky."
            ) from error
        raise RunError(
            f"Ray refuses parallel.address {options.address}: {error!r:.500}. A Ray cluster asks "
            "for a token: set RAY_AUTH_MODE=token, and the same token, for head, nodes and this "
            "command."
        ) from error
