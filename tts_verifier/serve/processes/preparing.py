"""The preparing process: between the HTTP process and that of an ImageDoctor.

Pictures come from the HTTP process as pixels and go on as what the engine takes. The engine's
answers come back and go on as verdicts. To the HTTP process it looks like the verifier's process,
so the two also work without it.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice, takewhile
from threading import Condition, Thread
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import as_exception
from tts_verifier.serve.dispatcher import PREPARING
from tts_verifier.serve.processes.channel import (
    Answered,
    Channel,
    PairResult,
    Prepared,
    PreparingSetup,
    RawAnswer,
    Submitted,
    Withdrawn,
    plain_verdict,
    portable,
)
from tts_verifier.types import Detail

_CHUNK: Final = 8
"""Pairs that are prepared before they are sent; each message takes time of the engine's process."""


def prepare_pairs(http: int, verifier: int) -> None:
    """Runs the process until one of the others has ended.

    Args:
        http: descriptor of the socket to the HTTP process.
        verifier: descriptor of the socket to the verifier's process.
    """
    # They are sent to all processes of a service, and this one ends with the others.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    ends = [Channel(socket.socket(fileno=descriptor)) for descriptor in (http, verifier)]
    Preparing(*ends).run()


class _Picture(NamedTuple):
    """A pair that is not prepared yet."""

    pixels: NDArray[np.uint8]
    """(H, W, 3), in RGB."""
    prompt: str
    detail: Detail

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]


class Preparing:
    """What the process does.

    It prepares no more pairs than the engines soon need: those of small pictures take far more
    memory than the pictures, which is all that `RequestLimits.memory` counts.

    Args:
        http: to the HTTP process.
        verifier: to the verifier's process.
    """

    def __init__(self, http: Channel, verifier: Channel) -> None:
        self._http, self._verifier = http, verifier
        self._answers = verifier.messages()
        self._setup: PreparingSetup
        # Guards all that follows; notified when a pair comes or ends, and at the end.
        self._changed = Condition()
        self._waiting: dict[int, _Picture] = {}
        # The size of each picture that was taken out of `_waiting`, and its detail.
        self._taken: dict[int, tuple[tuple[int, int], Detail]] = {}
        self._ended = False
        self._error: BaseException | None = None

    def run(self) -> None:
        """Works until one of the other processes has ended.

        Raises:
            BaseException: a message could not be sent or read. The server ends, since clients would
                wait for ever for what it holds.
        """
        with ThreadPoolExecutor(PREPARING, "prepare") as threads:
            try:
                self._run(threads)
            finally:
                # All is answered, or nobody waits for answers any more.
                with self._changed:
                    self._ended = True
                    self._changed.notify_all()
        if self._error is not None:
            raise self._error

    def _run(self, threads: Executor) -> None:
        # If the verifier's process has ended already, there is no message.
        with suppress(ConnectionError, StopIteration):
            self._setup = next(self._answers)
            self._http.send(self._setup.http)
            Thread(target=self._answer, daemon=True).start()
            for _ in range(PREPARING):
                threads.submit(self._prepare)
            for message in self._http.messages():
                if isinstance(message, Withdrawn):
                    self._withdraw(message)
                elif message.detail in self._setup.details:
                    self._submit(message)
                else:
                    self._verifier.send(message)
                # Its pixels would stay until the next one comes.
                del message

    def _submit(self, message: Submitted) -> None:
        pairs = zip(message.pixels, message.prompts, strict=True)
        pictures = [_Picture(*pair, message.detail) for pair in pairs]
        with self._changed:
            self._waiting.update(enumerate(pictures, message.first))
            self._changed.notify(PREPARING)

    def _withdraw(self, message: Withdrawn) -> None:
        with self._changed:
            sent = [n for n in message.numbers if self._waiting.pop(n, None) is None]
            for number in sent:
                self._forget(number)
        if sent:
            self._verifier.send(Withdrawn(sent))

    def _forget(self, number: int) -> tuple[tuple[int, int], Detail] | None:
        """Makes room for another pair; returns what was known of one that was taken."""
        with self._changed:
            self._changed.notify()
            return self._taken.pop(number, None)

    def _prepare(self) -> None:
        """Prepares pairs and sends them to the verifier's process, until the end."""
        try:
            while self._prepare_some():
                pass
        except ConnectionError:
            # A process has ended, and another thread sees it.
            pass
        except BaseException as error:
            self._give_up(error)

    def _prepare_some(self) -> bool:
        """Prepares the next pairs, once engines need them; returns False at the end."""
        prepared, failed = [], []
        pictures = self._take()
        for number, picture in pictures.items():
            try:
                image = Image.fromarray(picture.pixels)
                pair = self._setup.processor.prepare(image, picture.prompt, picture.detail)
                prepared.append((number, pair))
            # Memory may run out; panics of libraries in Rust are no Exceptions.
            except BaseException as error:
                self._forget(number)
                failed.append((number, portable(as_exception(error))))
        # Others may have been taken back meanwhile.
        prepared = [pair for pair in prepared if pair[0] in self._taken]
        if prepared:
            self._verifier.send(Prepared(prepared, pictures[prepared[0][0]].detail))
        # That process did not know one yet that was taken back while it waited to be sent.
        gone = [number for number, _ in prepared if number not in self._taken]
        if gone:
            self._verifier.send(Withdrawn(gone))
        if failed:
            self._http.send(Answered(failed, ending=False))
        return bool(pictures)

    def _take(self) -> dict[int, _Picture]:
        """Waits for pairs that engines need, and returns some of one detail; none at the end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or (self._waiting and len(self._taken) < self._setup.ahead)
            )
            if self._ended:
                return {}
            first = next(iter(self._waiting.values())).detail
            found = islice(self._waiting.items(), _CHUNK)
            pictures = dict(takewhile(lambda pair: pair[1].detail == first, found))
            for number, picture in pictures.items():
                del self._waiting[number]
                self._taken[number] = picture.size, picture.detail
            return pictures

    def _answer(self) -> None:
        """Makes verdicts of what the verifier's process answers, until it has ended."""
        try:
            for message in self._answers:
                results = [*self._results(message.results)]
                self._http.send(message._replace(results=results))
                del message, results
        except ConnectionError:
            # The HTTP process has ended.
            pass
        except BaseException as error:
            self._give_up(error)
        # Ends `run`, which waits for that process.
        self._http.close()

    def _results(self, given: Sequence[tuple[int, PairResult]]) -> Iterator[tuple[int, PairResult]]:
        """Yields what became of pairs, without those that were taken back."""
        for number, result in given:
            known = self._forget(number)
            if not isinstance(result, RawAnswer):
                yield number, result
            elif known is not None:
                yield number, self._verdict(*known, result)

    def _verdict(self, size: tuple[int, int], detail: Detail, result: RawAnswer) -> PairResult:
        try:
            return plain_verdict(self._setup.processor.verdict(size, detail, result.answer))
        except BaseException as error:
            return portable(as_exception(error))

    def _give_up(self, error: BaseException) -> None:
        """Has `run` raise an error of another thread."""
        self._error = error
        self._http.close()
