"""What the processes of a server send each other, over pairs of sockets.

Messages are pickles, since all processes are ours. Those of the HTTP process are made of plain
values, so that it imports neither torch nor a verifier's own modules. Nothing from a network is
unpickled.
"""

from __future__ import annotations

import pickle
import struct
import traceback
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import accumulate
from socket import MSG_WAITALL, SHUT_RDWR, socket
from threading import Lock
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tts_verifier import errors
from tts_verifier.serve.answers import Description
from tts_verifier.serve.limits import Refused, RequestLimits
from tts_verifier.types import Box, Detail, Heatmap, Heatmaps, Verdict

_APART: Final = 1 << 12
"""Bytes of an array from which it is sent beside the pickle, which saves two copies of it."""
_AT_ONCE: Final = 512
"""Parts that are sent in one call; Linux takes 1024."""


class Setup(NamedTuple):
    """The first message: all that the HTTP process is started with."""

    description: Description
    """Of the verifier."""
    host: str
    """The address to listen on."""
    port: int
    """Of TCP; 0 = any that is free."""
    limits: RequestLimits
    """Of requests."""
    token: str | None
    """That requests must have; None = none."""


class PreparingSetup(NamedTuple):
    """The first message to the preparing process."""

    processor: Any
    """Prepares pairs and makes verdicts, as a `PairProcessor`."""
    details: Collection[Detail]
    """Those of which it prepares pairs; others go on as they are."""
    ahead: int
    """Pairs from which on it prepares no more until earlier ones are answered."""
    http: Setup
    """Goes on to the HTTP process."""


class Submitted(NamedTuple):
    """The pairs of one request, on their way to the verifier."""

    first: int
    """The number of the first pair; the others follow."""
    pixels: Sequence[NDArray[np.uint8]]
    """(H, W, 3) each, in RGB."""
    prompts: Sequence[str]
    """One for each."""
    detail: Detail
    """How thoroughly to verify."""


class Prepared(NamedTuple):
    """Pairs that the preparing process has prepared for an engine."""

    pairs: Sequence[tuple[int, Any]]
    """By their numbers, as the verifier's `pair_processor` prepares them."""
    detail: Detail
    """How thoroughly to verify."""


class Withdrawn(NamedTuple):
    """Pairs that their clients do not wait for any more."""

    numbers: Sequence[int]
    """Of the pairs."""


class PlainVerdict(NamedTuple):
    """A verdict in values of Python and numpy, without its cost; see `Verdict`."""

    scores: dict[str, float]
    maps: dict[str, tuple[NDArray[np.float32], tuple[int, int], Box]]
    """By name: the grid, (h, w), the picture's (width, height), and the box."""
    boxes: tuple[Box, ...]
    text: str
    detail: Detail
    error: str

    def verdict(self) -> Verdict:
        """Returns the verdict."""
        maps = Heatmaps({name: Heatmap(*parts) for name, parts in self.maps.items()})
        return Verdict(self.scores, maps, self.boxes, self.text, self.detail, error=self.error)


class RawAnswer(NamedTuple):
    """What an engine answers to a prepared pair; the preparing process makes a verdict of it."""

    answer: Any


class ForeignError(NamedTuple):
    """An error that is not this package's, whose class the HTTP process may not have."""

    name: str
    """Of its class."""
    text: str
    """What it says."""
    trace: str
    """Where it was raised, for the log."""

    def error(self) -> Exception:
        """Returns an error of a class of the same name."""
        error: Exception = type(self.name, (Exception,), {})(self.text)
        error.add_note(self.trace)
        return error


PairResult = PlainVerdict | RawAnswer | ForeignError | Exception
"""What became of a pair."""


class Answered(NamedTuple):
    """What became of some pairs."""

    results: Sequence[tuple[int, PairResult]]
    """By the pairs' numbers."""
    ending: bool
    """Whether the server shall end."""


class Channel:
    """One end of a pair of sockets. Any thread may send, and one receives."""

    def __init__(self, end: socket) -> None:
        self._end = end
        self._sending = Lock()

    def send(self, message: object) -> None:
        """Sends a message; waits until the other process takes it.

        Raises:
            ConnectionError: the other process has ended.
        """
        apart: list[pickle.PickleBuffer] = []

        def keep(buffer: pickle.PickleBuffer) -> bool:
            if buffer.raw().nbytes < _APART:
                return True
            apart.append(buffer)
            return False

        data = pickle.dumps(message, 5, buffer_callback=keep)
        parts = [*(buffer.raw() for buffer in apart), memoryview(data)]
        sizes = [part.nbytes for part in parts]
        head = struct.pack(f"<{1 + len(sizes)}Q", len(sizes), *sizes)
        # In few calls, as `_receive` reads.
        with self._sending:
            self._send([memoryview(head), *parts])

    def _send(self, parts: list[memoryview]) -> None:
        while parts:
            sent, whole = self._end.sendmsg(parts[:_AT_ONCE]), 0
            while whole < len(parts) and sent >= parts[whole].nbytes:
                sent -= parts[whole].nbytes
                whole += 1
            parts = parts[whole:]
            if sent:
                parts[0] = parts[0][sent:]

    def messages(self) -> Iterator[Any]:
        """Yields messages until the other process has ended."""
        with suppress(EOFError, ConnectionError):
            while True:
                yield self._receive()

    def close(self) -> None:
        """Ends the connection for both processes. May be called by any thread, and again."""
        with suppress(OSError):
            self._end.shutdown(SHUT_RDWR)

    def _receive(self) -> Any:
        (count,) = struct.unpack("<Q", self._read(8))
        sizes = struct.unpack(f"<{count}Q", self._read(8 * count))
        # All at once: each call of the system gives Python's lock away, and waits for it again.
        whole, ends = self._read(sum(sizes)), accumulate(sizes)
        *apart, data = (whole[end - size : end] for size, end in zip(sizes, ends, strict=True))
        return pickle.loads(data, buffers=apart)

    def _read(self, size: int) -> memoryview:
        # numpy does not fill it with zeros first.
        rest = data = np.empty(size, np.uint8).data
        while rest:
            count = self._end.recv_into(rest, flags=MSG_WAITALL)
            if not count:
                raise EOFError
            rest = rest[count:]
        return data


def result_of(result: Future[Any]) -> PairResult:
    """Returns what became of a pair, as another process can unpickle it."""
    try:
        found = result.result()
        return plain_verdict(found) if isinstance(found, Verdict) else RawAnswer(found)
    except Exception as error:
        return portable(error)


def plain_verdict(verdict: Verdict) -> PlainVerdict:
    """Returns a verdict as any process can unpickle it."""
    maps = {name: verdict.heatmaps.on_grid(name) for name in verdict.heatmaps}
    return PlainVerdict(
        {_plain_text(name): float(score) for name, score in verdict.scores.items()},
        {_plain_text(name): (m.grid, m.size, m.box) for name, m in maps.items()},
        verdict.boxes,
        _plain_text(verdict.text),
        verdict.detail,
        _plain_text(verdict.error),
    )


def _plain_text(text: str) -> str:
    # A member of an enumeration may be a text, of a class that the HTTP process does not have.
    return str.__str__(text)


def portable(error: Exception) -> Exception | ForeignError:
    """Returns an error by which the HTTP process tells clients the same as by the error itself."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, MemoryError):
        return MemoryError(str(error))
    kind = next((k for k in type(error).__mro__ if k.__module__ == errors.__name__), None)
    if kind is None:
        trace = "".join(traceback.format_exception(error))
        return ForeignError(type(error).__name__, str(error), trace)
    if isinstance(error, errors.ServerError):
        return errors.ServerError(str(error), transient=error.transient)
    plain: Exception = kind(str(error))
    return plain
