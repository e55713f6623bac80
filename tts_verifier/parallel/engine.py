"""The seam between a job of many shards and the engine that runs them on worker processes.

An engine calls one function, `work`, in its workers. It knows nothing of runs or scores. A worker
that dies is replaced, and what it worked on is given out again: so `work` may be called more than
once for an item, one call after the other, and continues what an earlier call left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, Protocol, TypeVar

from tts_verifier.errors import RunError
from tts_verifier.recipe.parallel_options import ENGINES, ParallelOptions

Work = Callable[[Any], Any]
"""A function at the top of a module: workers import it. Items and results pickle, and are small."""
WorkT = TypeVar("WorkT")
_POLL_SECONDS: Final = 1.0


class WorkerEngine(Protocol):
    """Runs `work(item)` in worker processes. Belongs to one thread."""

    workers: int
    """How many workers there are."""
    most: int
    """Items in flight at most: one or two a worker, so that memory does not grow."""

    def submit(self, key: int, item: Any) -> None:
        """Hands an item to a worker; `key` tells items apart."""
        ...

    def take(self, seconds: float) -> list[tuple[int, Any]]:
        """Returns (key, result) of items that are done; waits for one, `seconds` at most.

        Raises:
            TTSError: `work` raised it, or workers cannot start or die one after the other.
        """
        ...

    def close(self, *, now: bool) -> None:
        """Ends the workers; `now` = without waiting for what they do."""
        ...


@contextmanager
def open_engine(options: ParallelOptions, work: Work) -> Iterator[WorkerEngine]:
    """Starts an engine, or joins a cluster, and ends the workers at the end of the block.

    Args:
        options: which engine, how many workers, and where.
        work: called in the workers.

    Raises:
        RunError: the engine is not installed, or nobody answers at the address.
        InputError: there are fewer GPUs than the options ask for.
    """
    engine = _engine_class(options.engine)(options, work)
    try:
        yield engine
    except BaseException:
        engine.close(now=True)
        raise
    engine.close(now=False)


def hand_out(
    engine: WorkerEngine, items: Iterable[WorkT], idle: Callable[[], object] = lambda: None
) -> Iterator[tuple[WorkT, Any]]:
    """Yields (item, result) as items are done, in any order; holds only what is in flight.

    Args:
        engine: from `open_engine`.
        items: taken one by one, as workers become free.
        idle: called about once a second while workers work, and after every item.

    Raises:
        TTSError: as `WorkerEngine.take`.
    """
    waiting, in_flight = iter(enumerate(items)), dict[int, WorkT]()
    exhausted = False
    while True:
        while not exhausted and len(in_flight) < engine.most:
            key, item = next(waiting, (-1, None))
            if item is None:
                exhausted = True
            else:
                in_flight[key] = item
                engine.submit(key, item)
        if not in_flight:
            return
        done = engine.take(_POLL_SECONDS)
        idle()
        for key, result in done:
            yield in_flight.pop(key), result


def _engine_class(name: str) -> Any:
    module, _, attribute = ENGINES[name].partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ImportError as error:
        # Without the engine's own library; loky is part of joblib, which is always there.
        raise RunError(
            f"The engine {name} needs a library that is not installed ({error}). Run "
            f'`pip install "tts-verifier[{name}]"`, on all machines, or use engine: loky.'
        ) from error
