"""What engines share: the GPUs and cores of a machine, and how a worker process begins and ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import InputError, RunError
from tts_verifier.recipe.parallel_options import ParallelOptions

_GPU_FILES: Final = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_CONNECT_SECONDS: Final = 10.0
_SETTINGS: Final = b"\x04"
"""The type of the frame with which client and server of HTTP/2 begin."""
_HTTP2_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0" * 5
_MOST_ON_A_CORE: Final = 32
"""Workers that wait for an API need little of a core; a slip must not start a million."""
ITEM_DEATHS: Final = 25
"""Workers that may die on one item. Whoever knows what an item is may give up on part of it."""


def cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus_here() -> list[str]:
    """Returns the GPUs of this machine, as `CUDA_VISIBLE_DEVICES` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.replace(" ", "").split(",") if name and name != "-1"]
    # torch takes seconds to import, for nothing on a machine without GPUs.
    if not any(Path(name).exists() for name in _GPU_FILES):
        return []
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def worker_count(
    options: ParallelOptions, gpus: int, where: str, *, cpus: int | None = None
) -> tuple[int, int]:
    """Returns the number of workers, and of GPUs of each.

    Args:
        options: what the user asks for.
        gpus: how many GPUs there are.
        where: such as "this machine has", for the message.
        cpus: cores that there are; None = those of this machine.

    Raises:
        InputError: the options ask for more GPUs than there are, or for far too many processes.
    """
    each = min(gpus, 1) if options.gpus is None else options.gpus
    workers = options.workers or (max(gpus // each, 1) if each else cpus or cores())
    if workers > (most := _MOST_ON_A_CORE * (cpus or cores())):
        raise InputError(
            f"workers must be at most {most}, {_MOST_ON_A_CORE} for each core that {where}, got "
            f"{workers}. Each of them is a process with models of its own.",
            argument="workers",
        )
    if workers * each > gpus:
        fewer = f"parallel.workers={gpus // each} or fewer" if gpus >= each else "fewer GPUs each"
        raise InputError(
            f"{workers} workers with {each} GPUs each need {workers * each} GPUs, and {where} "
            f"{gpus}. Give {fewer if gpus else 'parallel.gpus=0 to compute on the CPU'}.",
            argument="workers",
        )
    return workers, each


def thread_settings(workers: int) -> dict[str, str]:
    """Returns environment variables that give each worker its share of the cores."""
    share = str(max(cores() // workers, 1))
    # A value that the user has set takes precedence.
    return {name: share for name in _THREAD_VARIABLES if name not in os.environ}


def too_many_deaths(item: object, why: object) -> RunError:
    """Returns the error of an item on which worker after worker died."""
    reason = str(why).partition("\n")[0].rstrip(".")
    return RunError(
        f"{ITEM_DEATHS} workers died on the same work ({item}), one after the other: {reason}. "
        "Mend the cause; the same command goes on from there."
    )


@contextmanager
def starting_processes(tracker: Any) -> Iterator[None]:
    """What is started in the block, and by its threads for good, never sees a Ctrl-C.

    A process that has only begun would otherwise end with a traceback, before `begin_worker`. This
    process answers a Ctrl-C after the block.

    Args:
        tracker: the module of the process that removes semaphores when this one is killed. If it is
            not there yet, it is started here, because it would let Ctrl-C through, and without the
            warning that it has had something to do.
    """
    said = os.environ.get("PYTHONWARNINGS", "")
    os.environ["PYTHONWARNINGS"] = f"{said},ignore:resource_tracker".lstrip(",")
    try:
        tracker.ensure_running()
    finally:
        os.environ["PYTHONWARNINGS"] = said
        if not said:
            del os.environ["PYTHONWARNINGS"]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker(parent: int | None = None) -> None:
    """Prepares a worker process: called before anything heavy is imported.

    Args:
        parent: the coordinator's process, where it is the parent: a worker does not outlive it,
            for it would hold its GPU and its shard. None = the engine looks after that.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Ctrl-C in a terminal reaches every process; the coordinator alone answers it.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    # Not `sys.exit`, which ends this thread alone.
    os._exit(1)


def check_answers(address: str, engine: str, remedy: str, *, hello: bytes | None = None) -> bytes:
    """Raises RunError unless something listens at an address.

    Args:
        address: HOST:PORT, perhaps with a scheme.
        engine: for the message.
        remedy: what starts a cluster.
        hello: what is said before an answer is read, b"" if the other side speaks first; None =
            no answer is read.

    Returns:
        The beginning of the answer; empty if there is none.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        place = (host.strip("[]"), int(port))
        with socket.create_connection(place, _CONNECT_SECONDS) as connection:
            if hello is None:
                return b""
            connection.sendall(hello)
            try:
                return connection.recv(64)
            except TimeoutError:
                return b""
    except (OSError, OverflowError, ValueError) as error:
        raise RunError(
            f"Nobody answers at parallel.address {address} ({error}); {engine} must run there. "
            f"{remedy}"
        ) from error


def check_speaks_grpc(address: str, engine: str, remedy: str) -> None:
    """Raises RunError unless a server of gRPC answers at an address, as Ray's does.

    Ray itself waits for minutes where something else listens. Source of the bytes: RFC 9113, 3.4.
    """
    answer = check_answers(address, engine, remedy, hello=_HTTP2_HELLO)
    if answer[3:4] != _SETTINGS:
        raise _something_else(address, engine, remedy)


def check_speaks_dask(address: str, engine: str, remedy: str) -> None:
    """Raises RunError unless a scheduler of Dask begins to speak at an address, as it does on TCP.

    Dask itself waits for ever where something else listens, or asks for exbibytes.
    """
    if b"compression" not in check_answers(address, engine, remedy, hello=b""):
        raise _something_else(address, engine, remedy)


def _something_else(address: str, engine: str, remedy: str) -> RunError:
    return RunError(
        f"Something else than {engine} answers at parallel.address {address}; {engine} must run "
        f"there. {remedy}"
    )
