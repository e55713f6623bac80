"""The dispatcher, as the HTTP process sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Condition

import numpy as np
from numpy.typing import NDArray

from tts_verifier.serve.dispatcher import failure_after
from tts_verifier.serve.limits import check_queue
from tts_verifier.serve.processes.channel import (
    Answered,
    Channel,
    ForeignError,
    PlainVerdict,
    RawAnswer,
    Submitted,
    Withdrawn,
)
from tts_verifier.types import Detail, Verdict


class DispatcherProxy:
    """Passes pairs on to the `Dispatcher` of the verifier's process. Threads may share it.

    Args:
        channel: to that process; nobody else sends.
        most: pairs that may be under way.
        waited: called with the seconds that a pair took from its arrival to its verdict.
    """

    def __init__(self, channel: Channel, most: int, *, waited: Callable[[float], None]) -> None:
        self._channel, self._most, self._waited = channel, most, waited
        # Not the thread that submits, which is the event loop's: a request takes a while to send.
        self._sending = ThreadPoolExecutor(1, "sending")
        # Guards all that follows; notified when a pair is answered.
        self._changed = Condition()
        self._open: dict[int, tuple[Future[Verdict], float]] = {}
        self._count = 0
        # Taken back, but the other process does not know it yet.
        self._withdrawn: list[int] = []
        self._closed = False
        self._failure = ""

    @property
    def size(self) -> int:
        """How many pairs are under way."""
        return len(self._open)

    @property
    def failure(self) -> str:
        """See `Dispatcher.failure`. Here, since the preparing process fails as well."""
        return self._failure

    def start(self) -> None:
        """Does nothing: the other process has started its dispatcher."""

    def close(self) -> None:
        """Takes no more pairs, and returns when those that were taken are answered."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._open)
        self._sending.shutdown()

    def submit(
        self, pixels: Sequence[NDArray[np.uint8]], prompts: Sequence[str], detail: Detail
    ) -> list[Future[Verdict]]:
        """Sends pairs, all or none; see `Dispatcher.submit`."""
        futures: list[Future[Verdict]] = [Future() for _ in pixels]
        came = time.monotonic()
        with self._changed:
            check_queue(self._closed, self.size, len(futures), self._most)
            first, self._count = self._count, self._count + len(futures)
            # Lists of its own: the caller may drop the pictures.
            message = Submitted(first, list(pixels), list(prompts), detail)
            self._sending.submit(self._send, message)
            self._open.update((first + i, (future, came)) for i, future in enumerate(futures))
        for i, future in enumerate(futures):
            future.add_done_callback(partial(self._withdraw, first + i))
        return futures

    def take(self, message: Answered) -> None:
        """Passes on what the verifier's process has sent."""
        for number, result in message.results:
            # The preparing process has made verdicts of them.
            assert not isinstance(result, RawAnswer)
            answer = result.error() if isinstance(result, ForeignError) else result
            error = answer if isinstance(answer, Exception) else None
            self._failure = failure_after(self._failure, error)
            self._answer(number, answer)

    def _send(self, message: Submitted) -> None:
        try:
            self._channel.send(message)
        # Memory may run out.
        except Exception as error:
            for number in range(message.first, message.first + len(message.pixels)):
                self._answer(number, error)

    def _answer(self, number: int, answer: PlainVerdict | Exception) -> None:
        with self._changed:
            future, came = self._open.pop(number, (None, 0.0))
            self._changed.notify_all()
        # The client may have withdrawn it, even just now.
        if future is None or not future.set_running_or_notify_cancel():
            return
        if isinstance(answer, PlainVerdict):
            self._waited(time.monotonic() - came)
            future.set_result(answer.verdict())
        else:
            future.set_exception(answer)

    def _withdraw(self, number: int, verdict: Future[Verdict]) -> None:
        """Tells the verifier's process when a pair was taken back; called by any thread."""
        if not verdict.cancelled():
            return
        with self._changed:
            if self._open.pop(number, None) is not None:
                # Before `close` goes on, which ends the thread that sends.
                self._withdrawn.append(number)
                self._sending.submit(self._send_withdrawn, self._count)
                self._changed.notify_all()

    def _send_withdrawn(self, count: int) -> None:
        """Sends what was taken back of the first `count` pairs, which were sent before."""
        with self._changed:
            numbers = [number for number in self._withdrawn if number < count]
            self._withdrawn = [number for number in self._withdrawn if number >= count]
        if numbers:
            self._channel.send(Withdrawn(numbers))
