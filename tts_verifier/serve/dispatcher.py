"""Feeds one verifier with the pairs of all clients.

An ImageDoctor takes pairs as its sequences become free (`ImageDoctor.live`), in the order in which
they came. Other verifiers, and answers from a template, get all that wait as one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Condition, Thread
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import (
    InputError,
    ServerError,
    UnsupportedError,
    as_exception,
    is_out_of_memory,
)
from tts_verifier.interfaces import Verifier, check_verdicts
from tts_verifier.serve.limits import Refused, check_queue
from tts_verifier.types import Detail, Verdict

MOST_TOGETHER: Final = 64
"""Pairs of one call of a verifier that is not fed as it goes."""
PREPARING: Final = 3
"""Threads that prepare pictures for an engine."""


class Submission(NamedTuple):
    """A picture and its prompt on their way through the verifier."""

    pixels: NDArray[np.uint8]
    """(H, W, 3), in RGB."""
    prompt: str
    detail: Detail
    verdict: Future[Verdict]
    """Must not lead back here: pictures would stay until Python looks for cycles."""


class PreparedSubmission(NamedTuple):
    """The same, where another process has prepared it, and makes the verdict."""

    pair: Any
    """As the verifier's `pair_processor` prepares it."""
    detail: Detail
    verdict: Future[Any]
    """Waits for the engine's answer. See `Submission`."""


Queued = Submission | PreparedSubmission


def failure_after(failure: str, error: BaseException | None) -> str:
    """Returns what a verifier has failed with since it last worked, once one more pair has ended.

    Args:
        failure: before that.
        error: of the pair; None = it has a verdict. To refuse a picture is no failure.
    """
    if error is None:
        return ""
    refused = isinstance(error, InputError | UnsupportedError | Refused)
    return failure if refused else f"{type(error).__name__}: {error}"[:300]


class Dispatcher:
    """The queue of pairs, and the threads that empty it. Safe to share between threads.

    Args:
        verifier: used by one thread at a time; what its `live` gives, by several.
        most: pairs that may wait or be in the verifier.
        waited: called with the seconds that a pair took from its arrival to its verdict.
    """

    def __init__(
        self, verifier: Verifier, most: int, *, waited: Callable[[float], None] = lambda s: None
    ) -> None:
        self._verifier, self._most, self._waited = verifier, most, waited
        self._live_details: Collection[Detail] = getattr(verifier, "live_details", ())
        # Guards all that follows. Threads that prepare wait for it, or else the verifier's thread.
        # A change that lets one of them go on wakes one; one that ends wakes the others.
        self._changed = Condition()
        self._waiting: dict[Future[Any], Queued] = {}
        # Pairs that were taken out of `_waiting` and have not ended.
        self._inside = 0
        self._closed, self._feeding = False, False
        self._together = MOST_TOGETHER
        self._failure = ""
        self._thread = Thread(target=self._run, name="verifier")

    @property
    def size(self) -> int:
        """How many pairs wait or are in the verifier."""
        return len(self._waiting) + self._inside

    @property
    def failure(self) -> str:
        """What the verifier failed with since it last worked. To refuse a picture is no failure."""
        return self._failure

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Takes no more pairs, and returns when those that were taken are answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def submit(
        self, pixels: Sequence[NDArray[np.uint8]], prompts: Sequence[str], detail: Detail
    ) -> list[Future[Verdict]]:
        """Adds pairs, all or none.

        Returns:
            A future verdict for each; to cancel one takes its pair back.

        Raises:
            Refused: the queue is full or closed.
        """
        found = zip(pixels, prompts, strict=True)
        return self._add([Submission(*pair, detail, Future()) for pair in found])

    def submit_prepared(self, pairs: Sequence[Any], detail: Detail) -> list[Future[Any]]:
        """Adds pairs that another process has prepared, all or none.

        Args:
            pairs: as the verifier's `pair_processor` prepares them.
            detail: one of its `live_details`.

        Returns:
            An engine's future answer for each; to cancel one takes its pair back.

        Raises:
            Refused: see `submit`.
        """
        return self._add([PreparedSubmission(pair, detail, Future()) for pair in pairs])

    def _add(self, submissions: Sequence[Queued]) -> list[Future[Any]]:
        pairs = {each.verdict: each for each in submissions}
        ended = partial(self._ended, time.monotonic())
        for verdict in pairs:
            verdict.add_done_callback(ended)
        with self._changed:
            check_queue(self._closed, self.size, len(pairs), self._most)
            self._waiting |= pairs
            self._changed.notify(len(pairs))
        return list(pairs)

    def _ended(self, came: float, verdict: Future[Verdict]) -> None:
        """Notes that a pair is answered or was taken back; called by any thread."""
        with self._changed:
            if self._waiting.pop(verdict, None) is None:
                self._inside -= 1
            self._changed.notify()
        if verdict.cancelled():
            return
        error = verdict.exception()
        self._failure = failure_after(self._failure, error)
        if error is None:
            self._waited(time.monotonic() - came)

    def _run(self) -> None:
        while (detail := self._next_detail()) is not None:
            try:
                if detail in self._live_details:
                    self._feed()
                else:
                    self._batch(detail)
            # The engines could not be opened. The server goes on, and one pair fewer waits.
            except BaseException as error:
                with self._changed:
                    if (pair := self._head()) is not None:
                        self._take(pair)
                if pair is not None:
                    self._refuse(pair, error)

    def _next_detail(self) -> Detail | None:
        """Waits for a pair and returns its detail; None = closed, and none is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            head = self._head()
            return None if head is None else head.detail

    def _head(self) -> Queued | None:
        """Returns the pair that has waited longest."""
        return next(iter(self._waiting.values()), None)

    def _take(self, pair: Queued) -> Queued:
        """Takes a pair out of the queue."""
        self._inside += 1
        return self._waiting.pop(pair.verdict)

    def _batch(self, detail: Detail) -> None:
        with self._changed:
            found = [p for p in self._waiting.values() if p.detail == detail][: self._together]
            taken = [self._take(pair) for pair in found]
        # From here on they cannot be taken back.
        wanted = [p for p in taken if p.verdict.set_running_or_notify_cancel()]
        # All of them are: those that are prepared are of details that engines serve.
        self._verify([p for p in wanted if isinstance(p, Submission)], detail)

    def _verify(self, pairs: Sequence[Submission], detail: Detail) -> None:
        """Verifies pairs in one call; if that fails, in halves, so that one cannot harm others."""
        if not pairs:
            return
        try:
            given = self._verifier.verify(
                [Image.fromarray(p.pixels) for p in pairs], [p.prompt for p in pairs], detail=detail
            )
            verdicts = check_verdicts(self._verifier, given, len(pairs), "images")
            answered = list(zip(pairs, verdicts, strict=True))
        # Panics of libraries in Rust are no Exceptions. Interrupts come to the main thread alone.
        except BaseException as error:
            problem = as_exception(error)
        else:
            for pair, verdict in answered:
                pair.verdict.set_result(verdict)
            return
        half = len(pairs) // 2
        # No picture is to blame for a server that the verifier asks. Halves would ask it in vain.
        if not half or isinstance(problem, ServerError):
            for pair in pairs:
                pair.verdict.set_exception(problem)
            return
        if is_out_of_memory(problem):
            self._together = half
        self._verify(pairs[:half], detail)
        self._verify(pairs[half:], detail)

    def _feed(self) -> None:
        """Feeds the engines until the next pair is not for them, or none will come."""
        verifier: Any = self._verifier
        self._feeding = True
        with verifier.live() as live, ThreadPoolExecutor(PREPARING, "prepare") as threads:
            for _ in range(PREPARING):
                threads.submit(self._prepare, live, verifier.room)

    def _prepare(self, live: Any, room: int) -> None:
        """Prepares pairs and gives them to the engines, until these have to be left."""
        while (pair := self._next_live(live, room)) is not None:
            if pair.verdict.cancelled():
                continue
            try:
                if isinstance(pair, PreparedSubmission):
                    live.submit_prepared(pair.pair, pair.detail, pair.verdict)
                else:
                    image = Image.fromarray(pair.pixels)
                    live.submit(image, pair.prompt, pair.detail, pair.verdict)
            except BaseException as error:
                # A queue that an engine's failure has closed refuses as if the pair were at fault.
                closed = live.failed and isinstance(error, InputError)
                failed = Refused(
                    503, "The verifier's engine failed on another picture. Try again.", later=1
                )
                self._refuse(pair, failed if closed else error)

    def _next_live(self, live: Any, room: int) -> Queued | None:
        """Waits for room in the engines and for a pair; None = the engines have to be left."""
        with self._changed:
            # All threads leave with the first: `verify` waits for the last one.
            while self._feeding and not live.failed:
                head = self._head()
                if head is None and self._closed:
                    break
                if head is not None and head.detail not in self._live_details:
                    break
                if head is not None and self._inside < room:
                    return self._take(head)
                self._changed.wait()
            self._feeding = False
            self._changed.notify_all()
        return None

    def _refuse(self, pair: Queued, error: BaseException) -> None:
        # False if the client took it back just now.
        if pair.verdict.set_running_or_notify_cancel():
            pair.verdict.set_exception(as_exception(error))
