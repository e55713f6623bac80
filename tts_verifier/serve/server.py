"""A server: its connections, its signals, and an end that answers what it has."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from tts_verifier.errors import RunWarning
from tts_verifier.interfaces import Verifier
from tts_verifier.serve.app import Service, app_of, create_app
from tts_verifier.serve.limits import RequestLimits
from tts_verifier.serve.metrics import Metrics
from tts_verifier.serve.processes.channel import Channel
from tts_verifier.serve.processes.proxy import DispatcherProxy
from tts_verifier.serve.processes.verifier import CANNOT_LISTEN, VerifierProcess, cannot_listen
from tts_verifier.verifiers.remote.protocol import token_of

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOCAL = ("127.0.0.1", "localhost", "::1")
SEVERAL_PROCESSES = sys.platform != "win32"
"""Whether a process can be given a socket."""
SWITCH_SECONDS: Final = 1e-4
"""How long a thread keeps Python's lock from one that waits for it. An engine's thread needs it for
every kernel that it launches, and would wait for up to 5 ms each time, Python's default."""


def serve(
    verifier: Verifier, *, host: str, port: int, limits: RequestLimits, token: str | None = None
) -> None:
    """Serves until SIGTERM or Ctrl-C; then answers the requests that it has, and returns.

    The verifier stays in this process. Others speak HTTP and, for an ImageDoctor, prepare pictures
    (`processes`). A second Ctrl-C ends all at once, with the status 1. In the main thread of a
    process it answers these signals, and has all threads take turns more often meanwhile. On
    Windows, where a process cannot be given a socket, all is in this process, which is slower.

    Args:
        verifier: one; nobody else should use it meanwhile. The class of its objective must be in a
            module that the other processes can import, not in the script that is run.
        host: the address to listen on.
        port: of TCP; 0 = any that is free.
        limits: of requests.
        token: that requests must have; None = none.

    Raises:
        InputError: the verifier's settings are no values of JSON, or no header can hold the token.
        RunError: the address cannot be listened on.
        ServerProcessError: another process was killed or has failed. The verifier may still work
            on a picture then, in a thread.
    """
    token = token_of(token)
    if not token and host not in _LOCAL:
        warnings.warn(
            f"Everybody who reaches {host}:{port} may use this server. Set a token, or listen on "
            "127.0.0.1.",
            RunWarning,
            stacklevel=2,
        )
    if not SEVERAL_PROCESSES:
        _serve_in_one_process(
            make_server(verifier, host=host, port=port, limits=limits, token=token)
        )
        return
    process = VerifierProcess(verifier, host=host, port=port, limits=limits, token=token)
    asked = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            process.kill()
            # Python would wait for the threads of a verifier that may never end.
            os._exit(1)
        asked = True
        process.end()

    before, interval = {}, sys.getswitchinterval()
    # Both are the whole process's, and servers in other threads of it would not end in order.
    if threading.current_thread() is threading.main_thread():
        sys.setswitchinterval(SWITCH_SECONDS)
        before = {n: signal.signal(n, end) for n in _SIGNALS}
    try:
        process.run()
    finally:
        if before:
            sys.setswitchinterval(interval)
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve_in_one_process(server: uvicorn.Server) -> None:
    # uvicorn raises a Ctrl-C once more when it has ended.
    with suppress(KeyboardInterrupt):
        try:
            server.run()
        except SystemExit as error:
            if error.code:
                raise cannot_listen(server.config.host, server.config.port) from None


def make_server(
    verifier: Verifier, *, host: str, port: int, limits: RequestLimits, token: str | None = None
) -> uvicorn.Server:
    """Returns a server of one process; `run()` or `await serve()` starts it, `should_exit` ends it.

    Reading requests and writing answers slows the verifier down here, see `serve`.
    """
    return uvicorn.Server(
        _config(create_app(verifier, limits=limits, token=token), host, port, limits)
    )


def speak_http(descriptor: int) -> None:
    """Runs the HTTP process, until the verifier's process asks it to end, or dies.

    Args:
        descriptor: of the socket to that process, or to the one that prepares pictures for it.
    """
    # They are sent to all processes of a service, and this one is told when to end.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Of damaged metadata of pictures, which is harmless.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # The event loop waits for the threads that read requests otherwise.
    sys.setswitchinterval(SWITCH_SECONDS)
    channel = Channel(socket.socket(fileno=descriptor))
    messages = channel.messages()
    setup = next(messages, None)
    if setup is None:
        # The other process has died, and says why.
        sys.exit(1)
    limits, metrics = setup.limits, Metrics()
    proxy = DispatcherProxy(channel, limits.queue, waited=metrics.verified)
    service = Service(setup.description, proxy, metrics, limits, setup.token)
    server = _DeafServer(_config(app_of(service), setup.host, setup.port, limits))

    def receive() -> None:
        try:
            for message in messages:
                proxy.take(message)
                server.should_exit |= message.ending
        except Exception:
            traceback.print_exc()
        # Another process has died: nothing will be answered.
        os._exit(1)

    threading.Thread(target=receive, daemon=True).start()
    try:
        server.run()
    except SystemExit:
        # uvicorn's own status depends on its version.
        sys.exit(CANNOT_LISTEN)


class _DeafServer(uvicorn.Server):
    """Leaves signals to the verifier's process."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        pass


def _config(app: FastAPI, host: str, port: int, limits: RequestLimits) -> uvicorn.Config:
    class Protocol(_Impatient):
        seconds = limits.idle_seconds

    return uvicorn.Config(
        app,
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
