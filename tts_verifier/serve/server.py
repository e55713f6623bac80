"""The process of a server: its connections, its signals, and an end that answers what it has."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from types import FrameType
from typing import Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tts_verifier.errors import RunError, RunWarning
from tts_verifier.interfaces import Verifier
from tts_verifier.serve.app import create_app
from tts_verifier.serve.limits import RequestLimits
from tts_verifier.verifiers.remote.protocol import token_of

_LOCAL = ("127.0.0.1", "localhost", "::1")
SWITCH_SECONDS: Final = 1e-4
"""How long a thread keeps Python's lock from one that waits for it. An engine's thread needs it for
every kernel that it launches, and would wait for up to 5 ms each time, Python's default."""


def serve(
    verifier: Verifier, *, host: str, port: int, limits: RequestLimits, token: str | None = None
) -> None:
    """Serves until SIGTERM or Ctrl-C; then answers the requests that it has, and returns.

    A second Ctrl-C ends the process at once, with the status 1. In the main thread of a process it
    answers these signals, and has all threads take turns more often meanwhile.

    Args:
        verifier: one; nobody else should use it meanwhile.
        host: the address to listen on.
        port: of TCP; 0 = any that is free.
        limits: of requests.
        token: that requests must have; None = none.

    Raises:
        RunError: the address cannot be listened on.
    """
    if not token_of(token) and host not in _LOCAL:
        warnings.warn(
            f"Everybody who reaches {host}:{port} may use this server. Set a token, or listen on "
            "127.0.0.1.",
            RunWarning,
            stacklevel=2,
        )
    server = make_server(verifier, host=host, port=port, limits=limits, token=token)
    before, interval = {}, sys.getswitchinterval()
    # Both are the whole process's, and servers in other threads of it would not end in order.
    if threading.current_thread() is threading.main_thread():
        sys.setswitchinterval(SWITCH_SECONDS)
        # uvicorn raises the signal once more when it has ended, for whoever was asked before it.
        before = {n: signal.signal(n, _end) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run()
    except SystemExit as error:
        # uvicorn has logged why.
        if error.code:
            raise RunError(
                f"A server must be able to listen on {host}:{port}; it is not. Is the port in use, "
                "or the host no address of this machine?"
            ) from None
        raise
    finally:
        if before:
            sys.setswitchinterval(interval)
        for number, handler in before.items():
            signal.signal(number, handler)
        if before and server.force_exit:
            # The second Ctrl-C. Python would wait for the threads of a verifier that may never end.
            os._exit(1)


def make_server(
    verifier: Verifier, *, host: str, port: int, limits: RequestLimits, token: str | None = None
) -> uvicorn.Server:
    """Returns the server; `run()` or `await serve()` starts it, `should_exit` ends it."""

    class Protocol(_Impatient):
        seconds = limits.idle_seconds

    config = uvicorn.Config(
        create_app(verifier, limits=limits, token=token),
        host=host,
        port=port,
        http=Protocol,
        ws="none",
        log_level="info",
        access_log=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=int(limits.idle_seconds) + 1,
        server_header=False,
    )
    return uvicorn.Server(config)


class _Impatient(H11Protocol):
    """Ends connections that have had no request for a while, or whose client takes no answer.

    uvicorn waits for ever for the rest of a header, and for a client to read. A few thousand that
    send a letter a minute would take all connections; one that reads none of its answer, or a
    letter a minute, would keep it in memory, and the process from ending.
    """

    seconds = 30.0

    def connection_made(self, transport: object) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._seen: object = None
        self._look()

    def _look(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if self.transport.is_closing() and not unsent:
            return
        # Writing is paused while the answer to an earlier request of the connection is not read.
        unread = self.cycle is not None and self.flow.write_paused
        idle = self.cycle is None or self.cycle.response_complete or unread
        # A request that ends and the next that begins between two looks are two cycles.
        found = (self.cycle,) if idle else None
        if idle and found == self._seen:
            # To close it would wait until all is sent.
            self.transport.abort()
            return
        self._seen = found
        self.loop.call_later(self.seconds, self._look)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
