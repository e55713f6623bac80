"""Clients of HTTP end their requests, whatever the other side does with them."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import openai
import pytest

from tts_verifier.errors import ServerError
from tts_verifier.interfaces.endpoints import ClientPool, bounded

KINDS = [httpx.Client, openai.DefaultHttpxClient]
HEAD = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def listening(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """Serves each connection by a function, in a thread; its event is set when the test is over."""
    over, threads = threading.Event(), list[threading.Thread]()

    def one(accepted: socket.socket) -> None:
        with accepted, suppress(OSError):
            serve(accepted, over)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=one, args=server.accept()[:1]))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threads.append(threading.Thread(target=accept))
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            server.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def dripping(*begin: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def serve(accepted: socket.socket, over: threading.Event) -> None:
        accepted.sendall(b"".join(begin))
        while not over.wait(0.01):
            accepted.sendall(b"x")

    return serve


def sipping(accepted: socket.socket, over: threading.Event) -> None:
    while not over.wait(0.01):
        accepted.recv(1000)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "serve",
    [
        dripping(),
        dripping(HEAD, b"x: "),
        dripping(HEAD, b"content-length: 9999\r\n\r\n"),
        # What ends with the connection ends when the client itself ends it, too.
        dripping(HEAD, b"\r\n"),
        sipping,
    ],
    ids=["status", "header", "body", "body to the end", "request"],
)
def test_a_whole_request_has_a_limit(kind: Any, serve: Any) -> None:
    with (
        listening(serve) as url,
        bounded(kind, seconds=0.3, most=10**6)(timeout=60) as client,
        pytest.raises(Exception, match=r"the answer took more than 0\.3 s") as raised,
    ):
        client.post(url, content=bytes(5 * 10**7))
    assert type(raised.value).__name__ == "ReadTimeout"


def answering(*parts: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def serve(accepted: socket.socket, over: threading.Event) -> None:
        while accepted.recv(1000).endswith(b"\r\n\r\n"):
            accepted.sendall(b"".join(parts))

    return serve


BOMB = gzip.compress(bytes(10**6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"content-length: 101\r\n\r\n" + bytes(101), "may have 100 bytes, that of 127.0.0.1 has"),
        (b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(BOMB) + BOMB, "compressed"),
    ],
)
def test_an_answer_has_a_limit(kind: Any, answer: bytes, message: str) -> None:
    with (
        listening(answering(HEAD, answer)) as url,
        bounded(kind, seconds=60, most=100)() as client,
        pytest.raises(ServerError, match=message),
    ):
        client.get(url)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("answer", "status", "content"),
    [
        (b"503 Later\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\n\x1f\x8b\b", 503, b""),
        (b"200 OK\r\ncontent-encoding:\r\ncontent-length: 2\r\n\r\n{}", 200, b"{}"),
    ],
)
def test_an_answer_that_need_not_be_unpacked_is_one(
    kind: Any, answer: bytes, status: int, content: bytes
) -> None:
    with (
        listening(answering(b"HTTP/1.1 ", answer)) as url,
        bounded(kind, seconds=60, most=100)() as client,
    ):
        found = client.get(url)
    assert (found.status_code, found.content) == (status, content)


@pytest.mark.parametrize("kind", KINDS)
def test_connections_are_kept_but_not_after_an_error(kind: Any) -> None:
    ports: list[int] = []

    def serve(accepted: socket.socket, over: threading.Event) -> None:
        ports.append(accepted.getpeername()[1])
        answering(HEAD, b"content-length: 2\r\n\r\n{}")(accepted, over)

    pool = ClientPool(bounded(kind, seconds=60, most=100))
    with listening(serve) as url:
        for fails in (False, False, True, False):
            with suppress(ZeroDivisionError), pool.client() as client:
                assert client.get(url).json() == {}
                if fails:
                    raise ZeroDivisionError
        assert len(ports) == 2
        del pool, client
