"""A server in a thread of the test, on a port of its own."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from tts_verifier.interfaces import Verifier
from tts_verifier.serve.limits import RequestLimits
from tts_verifier.serve.processes.verifier import VerifierProcess
from tts_verifier.serve.server import make_server
from tts_verifier.verifiers.remote import Remote

SECONDS = 60


@contextmanager
def serving(verifier: Verifier, *, token: str | None = None, **limits: Any) -> Iterator[str]:
    """Serves inside the block; gives the URL. At the end the server must have ended."""
    server = make_server(
        verifier, host="127.0.0.1", port=0, limits=RequestLimits(**limits), token=token
    )
    thread = Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(SECONDS)
    assert not thread.is_alive()


@contextmanager
def serving_apart(verifier: Verifier, **limits: Any) -> Iterator[str]:
    """As `serving`, with the HTTP in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = VerifierProcess(verifier, host="127.0.0.1", port=port, limits=RequestLimits(**limits))
    thread = Thread(target=process.run)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        # Asks again until the server answers.
        assert Remote(url, patience=SECONDS).settings == verifier.settings
        yield url
    finally:
        process.end()
        thread.join(SECONDS)
    assert not thread.is_alive()
