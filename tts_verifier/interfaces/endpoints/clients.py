"""HTTP clients that limit the time of a request and the size of its answer."""

from __future__ import annotations

import os
import socket
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from importlib import import_module
from threading import Timer
from typing import Any, Final

from tts_verifier.errors import ServerError

MOST_SECONDS: Final = 10**7
"""Longer timeouts are cut to this: a socket cannot wait for any length of time."""


class ClientPool:
    """Clients that are used by one thread at a time, and keep their connections between requests.

    Safe to share between threads, and with processes that are forked or get a pickled copy: each
    process opens its own connections. On a connection that a fork copied, a process would receive
    answers to requests of the other one.

    Args:
        make: returns a client; can be pickled if the pool is.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._idle: list[Any] = []
        self._process = os.getpid()
        # Otherwise their sockets would stay open until Python ends.
        weakref.finalize(self, _close_all, self._idle)

    def __reduce__(self) -> Any:
        return type(self), (self._make,)

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Lends a client to the block. If the block raises an error, the client is closed."""
        if self._process != os.getpid():
            _close_all(self._idle)
            self._process = os.getpid()
        try:
            client = self._idle.pop()
        except IndexError:
            client = self._make()
        try:
            yield client
        except BaseException:
            client.close()
            raise
        self._idle.append(client)


def bounded(kind: type[Any], *, seconds: float, most: int) -> type[Any]:
    """Returns a class of clients whose requests have a time limit, and whose answers a size limit.

    The timeouts of HTTP libraries are for a single read: an endpoint that sends a byte a minute
    never exceeds them.

    Args:
        kind: `httpx.Client` or a class with its interface, such as `openai.DefaultHttpxClient`.
        seconds: for a whole request, from its first byte to the answer's last; at most
            `MOST_SECONDS`.
        most: bytes of an answer.

    Returns:
        A subclass, for one request at a time. `send` raises the library's ReadTimeout if an answer
        is late, and ServerError if it is too long, or compressed: a small answer could unpack to
        any length. Of a compressed error the status remains, without its text.
    """
    # Callers catch the errors of the library that they use, httpx or httpx2.
    library = next(base.__module__ for base in kind.__mro__ if base.__name__ == "Client")
    timeout: type[Exception] = import_module(library.partition(".")[0]).ReadTimeout

    class Bounded(kind):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.headers["accept-encoding"] = "identity"
            self._sockets = _Sockets(timeout)

        def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            request.extensions["trace"] = self._sockets.note
            with self._sockets.open_for(seconds):
                response = super().send(request, stream=True, **options)
                with closing(response):
                    content = _content_of(response, most)
            headers = response.headers.copy()
            # The content is not compressed, and httpx would unpack it.
            headers.pop("content-encoding", None)
            return type(response)(
                response.status_code, headers=headers, content=content, request=response.request
            )

    return Bounded


class _Sockets:
    """The sockets of a client, which another thread may shut down.

    Args:
        timeout: the error that is raised if this happened.
    """

    def __init__(self, timeout: type[Exception]) -> None:
        self._timeout = timeout
        self._open: list[socket.socket] = []
        self._late = False

    @contextmanager
    def open_for(self, seconds: float) -> Iterator[None]:
        """Limits the block's time; then the sockets are shut down, and `timeout` is raised."""
        self._late = False
        timer = Timer(seconds, self._shut_down)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception:
            if not self._late:
                raise
        finally:
            timer.cancel()
            # If the timer has just fired, its work must end before the next request begins.
            timer.join()
        # Also if the block raised nothing: a shut connection can look like the end of an answer.
        if self._late:
            raise self._timeout(f"the answer took more than {seconds:g} s")

    def note(self, event: str, info: Mapping[str, Any]) -> None:
        """Collects new sockets. httpx calls this at each event of a request (extension `trace`)."""
        # Those to a proxy too. TLS wraps the first socket in another one.
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            opened = info["return_value"].get_extra_info("socket")
            self._open = [*(one for one in self._open if one.fileno() >= 0), opened]
            if self._late:
                self._shut_down()

    def _shut_down(self) -> None:
        """Ends all waiting for these sockets, now and later. Closing them would wake no thread."""
        self._late = True
        for one in self._open:
            with suppress(OSError):
                # Not SSLSocket.shutdown: it drops the TLS state while another thread reads.
                socket.socket.shutdown(one, socket.SHUT_RDWR)


def _content_of(response: Any, most: int) -> bytes:
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        if not response.is_success:
            # The status counts, which may mean that the same request is answered later.
            return b""
        raise ServerError(
            f"An answer must not be compressed; that of {response.url.host} is: {encoding:.40}. "
            "Ask it without the proxy that compresses it."
        )
    parts: list[bytes] = []
    size = 0
    for part in response.iter_raw():
        parts.append(part)
        size += len(part)
        if size > most:
            raise ServerError(
                f"An answer may have {most:,} bytes, that of {response.url.host} has more. Is it "
                "the server that was meant?"
            )
    return b"".join(parts)


def _close_all(clients: list[Any]) -> None:
    # Several threads of a forked process may get here at once.
    with suppress(IndexError):
        while True:
            clients.pop().close()
