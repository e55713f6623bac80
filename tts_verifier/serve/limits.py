"""What requests may take, and how one is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from threading import Lock
from types import TracebackType
from typing import Any, Final

from tts_verifier.errors import InputError

MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """The limits of a server."""

    body: int = 256 * MIB
    """Bytes of a request's body; of its pictures' pixels, so that no small file becomes a large
    picture; and of the maps that it asks for."""
    memory: int = 4096 * MIB
    """Bytes of all requests under way; at least what one may take: body, pixels and maps."""
    pixels: int = 4096 * 4096
    """Pixels of a picture."""
    images: int = 512
    """Pictures of a request."""
    prompt: int = 20_000
    """Characters of a prompt."""
    queue: int = 4096
    """Pictures that wait for the verifier or are in it."""
    connections: int = 1000
    """Open connections."""
    body_seconds: float = 60.0
    """Time to send a request."""
    answer_seconds: float = 600.0
    """Time to wait for the verifier."""
    idle_seconds: float = 30.0
    """Time that a connection may be open without a request."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if name.endswith("_seconds"):
                usable, kind = 0 < value < math.inf, "finite"
            else:
                usable, kind = type(value) is int and value >= 1, "a whole number"
            if not usable:
                raise InputError(
                    f"The limit {name} must be above 0 and {kind}, got {value!r}.", argument=name
                )
        # Otherwise a request would be told for ever to try again.
        if self.memory < 3 * self.body:
            raise InputError(
                "The limit memory must be at least three times the limit body, for a request's "
                f"body, pixels and maps; got {self.memory:,} and {self.body:,} bytes. Raise "
                "--max-memory, or lower --max-body.",
                argument="memory",
            )


class Refused(Exception):
    """A request that gets an error instead of an answer.

    Args:
        status: of HTTP.
        message: the rule, the value found and the remedy.
        later: seconds after which the same request may be answered; None = never.
    """

    def __init__(self, status: int, message: str, *, later: int | None = None) -> None:
        super().__init__(message)
        self.status, self.later = status, later

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is unpickled by its `args`, which are the message alone.
        return partial(Refused, later=self.later), (self.status, str(self))


def check_queue(closed: bool, size: int, more: int, most: int) -> None:
    """Raises Refused if a queue takes no more pairs.

    Args:
        closed: whether the server is ending.
        size: pairs that are under way.
        more: pairs to add. An empty queue takes any number.
        most: pairs that may be under way.
    """
    if closed:
        raise Refused(503, "This server is ending. Ask another one.", later=5)
    if size and size + more > most:
        raise Refused(
            429,
            f"{most} pictures may wait for the verifier, and {size} do. Try "
            "again, or start the server with a larger --max-queue.",
            later=1,
        )


class Memory:
    """Counts the bytes of all requests under way. Safe to share between threads."""

    def __init__(self, most: int) -> None:
        self.most = most
        """Bytes that requests may take together."""
        self._held, self._changing = 0, Lock()

    @property
    def held(self) -> int:
        """Bytes that are taken now."""
        return self._held

    def add(self, count: int) -> None:
        """Takes so many bytes, or gives them back if negative.

        Raises:
            Refused: there are not so many left.
        """
        with self._changing:
            if count > 0 and self._held + count > self.most:
                raise Refused(
                    503,
                    f"Requests under way may take {self.most:,} bytes together, and take "
                    f"{self._held:,}. Try again, or start the server with a larger --max-memory.",
                    later=1,
                )
            self._held += count


class MemoryShare:
    """The bytes of one request, given back at the end of the `with` block."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self._taken = memory, 0
        self.pixels = 0
        """Bytes of the pictures' pixels so far."""

    def add(self, count: int) -> None:
        """Takes so many bytes more, see `Memory.add`."""
        self._memory.add(count)
        self._taken += count

    def __enter__(self) -> MemoryShare:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._memory.add(-self._taken)
        self._taken = 0
