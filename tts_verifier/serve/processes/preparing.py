"""The preparing process: between the HTTP process and that of an ImageDoctor.

Pictures come from the HTTP process as pixels and go on as what the engine takes. The engine's
answers come back and go on as verdicts. To the HTTP process it looks like the verifier's process,
so the two also work without it.
"""

from __future__ import annotations

import signal
import socket
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Thread
from typing import Any, Final

from PIL import Image

from tts_verifier.errors import as_exception
from tts_verifier.serve.dispatcher import PREPARING
from tts_verifier.serve.processes.channel import (
    Answered,
    Channel,
    PairResult,
    Prepared,
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


class Preparing:
    """What the process does.

    Args:
        http: to the HTTP process.
        verifier: to the verifier's process.
    """

    def __init__(self, http: Channel, verifier: Channel) -> None:
        self._http, self._verifier = http, verifier
        self._answers = verifier.messages()
        self._processor: Any
        self._threads = ThreadPoolExecutor(PREPARING, "prepare")
        # The size of each picture whose verdict is to be made, and its detail, by its number.
        self._open: dict[int, tuple[tuple[int, int], Detail]] = {}

    def run(self) -> None:
        """Works until one of the other processes has ended."""
        # If the verifier's process has ended already, there is no message.
        with suppress(ConnectionError, StopIteration):
            self._processor, setup = next(self._answers)
            self._http.send(setup)
            Thread(target=self._answer, daemon=True).start()
            for message in self._http.messages():
                if isinstance(message, Withdrawn):
                    self._open.pop(message.number, None)
                    self._verifier.send(message)
                elif message.detail in self._processor.live_details:
                    self._submit(message)
                else:
                    self._verifier.send(message)
                # Its pixels would stay until the next one comes.
                del message
        # All is answered, or nobody waits for answers any more.
        self._threads.shutdown(cancel_futures=True)

    def _submit(self, message: Submitted) -> None:
        for place, pixels in enumerate(message.pixels):
            height, width, _ = pixels.shape
            self._open[message.first + place] = (width, height), message.detail
        for place in range(0, len(message.pixels), _CHUNK):
            part = slice(place, place + _CHUNK)
            self._threads.submit(
                self._prepare,
                Submitted(
                    message.first + place,
                    message.pixels[part],
                    message.prompts[part],
                    message.detail,
                ),
            )

    def _prepare(self, message: Submitted) -> None:
        """Prepares pairs and sends them to the verifier's process."""
        prepared, failed = [], []
        pairs = zip(message.pixels, message.prompts, strict=True)
        for number, (pixels, prompt) in enumerate(pairs, message.first):
            if number not in self._open:
                continue
            try:
                image = Image.fromarray(pixels)
                prepared.append((number, self._processor.prepare(image, prompt, message.detail)))
            # Memory may run out; panics of libraries in Rust are no Exceptions.
            except BaseException as error:
                self._open.pop(number, None)
                failed.append((number, portable(as_exception(error))))
        # Others may have been taken back meanwhile.
        prepared = [pair for pair in prepared if pair[0] in self._open]
        try:
            if prepared:
                self._verifier.send(Prepared(prepared, message.detail))
            if failed:
                self._http.send(Answered(failed, None, ending=False))
        except ConnectionError:
            # A process has ended, and another thread sees it.
            pass
        except BaseException:
            self._give_up()

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
        except BaseException:
            self._give_up()
        # Ends `run`, which waits for that process.
        self._http.close()

    def _results(self, given: Sequence[tuple[int, PairResult]]) -> Iterator[tuple[int, PairResult]]:
        """Yields what became of pairs, without those that were taken back."""
        for number, result in given:
            known = self._open.pop(number, None)
            if not isinstance(result, RawAnswer):
                yield number, result
            elif known is not None:
                yield number, self._verdict(*known, result)

    def _verdict(self, size: tuple[int, int], detail: Detail, result: RawAnswer) -> PairResult:
        try:
            return plain_verdict(self._processor.verdict(size, detail, result.answer))
        except BaseException as error:
            return portable(as_exception(error))

    def _give_up(self) -> None:
        """Ends the server: clients would wait for ever for what cannot be sent."""
        traceback.print_exc()
        self._http.close()
