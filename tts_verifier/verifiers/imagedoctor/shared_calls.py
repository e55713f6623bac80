"""Lets threads share a model: their calls wait in one queue, and calls that match run together.

A model works on one batch at a time. Every call therefore waits in a queue; the thread of the
oldest one leads: it takes all waiting calls with the same key and runs them in one pass, while the
other threads wait for their results. The queue belongs to the model, because two verifiers may
share one. It knows nothing of the engine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Lock, RLock, get_ident
from typing import Any, Final
from weakref import WeakKeyDictionary

from tts_verifier.errors import UnsupportedError


@dataclass(slots=True, eq=False)
class _Call:
    """A call in the queue."""

    key: Hashable
    """Calls with equal keys may run together."""
    items: Sequence[Any]
    """What it asks for."""
    thread: int = field(default_factory=get_ident)
    """The thread that waits for it."""
    results: Sequence[Any] | None = None
    """One for each item, once they are there."""
    error: Exception | None = None
    """What ended the pass that it was in."""

    @property
    def done(self) -> bool:
        """Whether a pass has served it."""
        return self.results is not None or self.error is not None


class SharedCalls:
    """A queue of calls. Safe to share between threads, which is its purpose."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._waiting: list[_Call] = []
        """Calls that no pass has taken yet, oldest first."""
        self._running: _Call | None = None
        """The call whose thread leads a pass, or works alone."""
        self.moving = RLock()
        """Held while weights move, so that no thread reads half of their new places."""

    def run(
        self, key: Hashable, items: Sequence[Any], work: Callable[[Sequence[Any]], Sequence[Any]]
    ) -> Sequence[Any]:
        """Returns the results of `items`, from a pass with all waiting calls of the same key.

        Args:
            key: calls with equal keys must have the same `work`.
            items: what this call asks for.
            work: returns a result for each of several calls' items, in order.

        Raises:
            UnsupportedError: this thread is in a pass already, and would wait for itself.
            Exception: whatever `work` raised in the pass; all calls of a pass get it.
        """
        call = _Call(key, items)
        with self._turn(call):
            if not call.done:
                self._lead(call, work)
        if call.error is not None:
            raise call.error
        return call.results or []

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits for the calls before it, and lets no other run inside the `with` block."""
        with self._turn(_Call(object(), ())):
            yield

    @contextmanager
    def _turn(self, call: _Call) -> Iterator[None]:
        """Waits until another thread has served a call, or until its own thread has the turn."""
        # Ctrl-C may arrive anywhere in here; the queue must go on without this call.
        try:
            with self._changed:
                if self._running is not None and self._running.thread == call.thread:
                    raise UnsupportedError(
                        "A verifier cannot be called from within its own call, in the same thread. "
                        "Call it once the outer call has returned."
                    )
                self._waiting.append(call)
                while not call.done and (self._running or self._waiting[0] is not call):
                    self._changed.wait()
                if not call.done:
                    self._running = call
            yield
        finally:
            with self._changed:
                self._waiting = [other for other in self._waiting if other is not call]
                if self._running is call:
                    self._running = None
                self._changed.notify_all()

    def _lead(self, leader: _Call, work: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
        """Serves all waiting calls of the leader's key in one pass."""
        calls: list[_Call] = []
        try:
            with self._changed:
                calls = [call for call in self._waiting if call.key == leader.key]
                self._waiting = [call for call in self._waiting if call.key != leader.key]
            results = iter(work([item for call in calls for item in call.items]))
            for call in calls:
                call.results = [next(results) for _ in call.items]
        except Exception as error:
            for call in calls:
                call.error = error if call is leader else _copied(error)
        except BaseException:
            # Ctrl-C is for the thread that it reached. The next leader serves the others.
            unserved = [call for call in calls if call is not leader and not call.done]
            with self._changed:
                later = [call for call in self._waiting if call not in unserved]
                self._waiting = unserved + later
            raise


_OF_MODEL: Final[WeakKeyDictionary[Any, SharedCalls]] = WeakKeyDictionary()
_OF_MODEL_LOCK: Final = Lock()


def calls_of(model: Any) -> SharedCalls:
    """Returns the queue of a model, the same one for everything that shares the model."""
    # Not an attribute of its owner, which could then be neither copied nor pickled.
    with _OF_MODEL_LOCK:
        return _OF_MODEL.setdefault(model, SharedCalls())


def _copied(error: Exception) -> Exception:
    """Returns an error of its own for another thread: raising one in two mixes their tracebacks."""
    try:
        copied = copy.copy(error)
    # An error whose constructor takes other arguments than it keeps cannot be copied.
    except Exception:
        return error
    copied.__cause__ = error
    return copied
