"""A server whose HTTP is a process of its own answers as one of a single process does."""

from __future__ import annotations

import gc
import math
import socket
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import SECONDS, serving, serving_apart
from tiny_imagedoctor import noise

from tts_verifier.errors import CheckpointError, InputError, ServerError, UnsupportedError
from tts_verifier.serve.dispatcher import Dispatcher
from tts_verifier.serve.limits import Refused, RequestLimits
from tts_verifier.serve.processes.channel import Channel, Withdrawn
from tts_verifier.serve.processes.proxy import DispatcherProxy
from tts_verifier.serve.processes.verifier import ServerProcessError, VerifierProcess
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Verdict
from tts_verifier.verifiers.remote import Remote
from tts_verifier.verifiers.remote.protocol import MEDIA_TYPE, request_of


class OutOfMemoryError(RuntimeError):
    """As torch raises it."""


class MissingFont(UnsupportedError):
    """A class that the HTTP process does not have."""


class MuteError(Exception):
    """Cannot say what is wrong."""

    def __str__(self) -> str:
        raise AttributeError("reason")


class Name(StrEnum):
    """Texts of a class that the HTTP process does not have."""

    UNKNOWN = "unknown"


PROBLEMS: dict[str, tuple[Exception, int]] = {
    "input": (InputError("Too dark."), 422),
    "unsupported": (MissingFont("No font."), 422),
    "checkpoint": (CheckpointError("No weights."), 424),
    "away": (ServerError("The other one is away.", transient=True), 503),
    "engine": (Refused(503, "The engine failed.", later=1), 503),
    "host memory": (MemoryError(), 503),
    "GPU memory": (OutOfMemoryError("CUDA"), 503),
    "bug": (ZeroDivisionError("by zero"), 500),
    "mute": (MuteError(), 500),
}


def scores(image: Image.Image, prompt: str) -> dict[str, float]:
    if prompt in PROBLEMS:
        raise PROBLEMS[prompt][0]
    return {"overall": float(np.asarray(image).mean()), Name.UNKNOWN: math.nan}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """Of a server in one process and of one in two, and a file that the import of torch makes."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "torch.py").write_text(f"open({str(folder / 'imported')!r}, 'w')")
    with pytest.MonkeyPatch.context() as patch, serving(FakeVerifier(scores)) as here:
        patch.syspath_prepend(folder)
        # Python ignores an entry that is no text.
        patch.setattr(sys, "path", [*sys.path, folder])
        with serving_apart(FakeVerifier(scores)) as there:
            yield here, there, folder / "imported"


def ask(url: str, body: bytes) -> httpx.Response:
    return httpx.post(f"{url}/v1/score", content=body, headers={"content-type": MEDIA_TYPE})


def both(urls: tuple[str, str, Path], body: bytes) -> httpx.Response:
    """The answer of the server in two processes, which must be that of the other one."""
    here, there = (ask(url, body) for url in urls[:2])
    assert (there.status_code, there.content) == (here.status_code, here.content)
    assert there.headers.get("retry-after") == here.headers.get("retry-after")
    return there


def test_scores_and_maps_are_the_same(urls: tuple[str, str, Path]) -> None:
    # One of them is large enough to be sent beside the pickle.
    pixels = [np.asarray(noise(200, 160)), np.asarray(noise(8, 12))]
    assert both(urls, request_of(pixels, ["a cat", "é"], "diagnose", True)).is_success
    assert both(urls, request_of(pixels, ["a cat", "é"], "score", False)).is_success
    about = [httpx.get(f"{url}/v1/verifier").json() for url in urls[:2]]
    assert about[0] == about[1]


@pytest.mark.parametrize("prompt", PROBLEMS)
def test_an_error_is_told_as_the_same(urls: tuple[str, str, Path], prompt: str) -> None:
    pixels = [np.asarray(noise(8, 8))]
    found = both(urls, request_of(pixels, [prompt], "diagnose", False))
    assert found.status_code == PROBLEMS[prompt][1]
    assert both(urls, request_of(pixels * 2, ["a cat", prompt], "diagnose", False)).is_error
    health = [httpx.get(f"{url}/health").json() for url in urls[:2]]
    assert health[0] == health[1]


def test_the_http_process_imports_no_torch(urls: tuple[str, str, Path]) -> None:
    assert both(urls, request_of([np.asarray(noise(8, 8))], ["a cat"], "diagnose", True)).is_success
    assert "tts_pictures_total" in httpx.get(f"{urls[1]}/metrics").text
    assert not urls[2].exists()


def test_pairs_for_which_memory_runs_out_fail_alone(
    urls: tuple[str, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = request_of([np.asarray(noise(8, 8))], ["a cat"], "diagnose", False)

    def fails(pixels: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        # Of the verifier's process.
        patch.setattr(Image, "fromarray", fails)
        assert ask(urls[1], body).status_code == 503
    assert ask(urls[1], body).is_success


def test_pictures_are_freed_once_they_are_answered() -> None:
    pixels = np.array(noise(8, 8))
    freed = weakref.ref(pixels)
    dispatcher = Dispatcher(FakeVerifier(scores), 4)
    dispatcher.start()
    gc.disable()
    try:
        (verdict,) = dispatcher.submit([pixels], ["a cat"], "diagnose")
        del pixels
        dispatcher.close()
        assert verdict.result(0).scores
        assert freed() is None
    finally:
        gc.enable()


def test_an_error_keeps_nothing_of_the_failed_call() -> None:
    class Tensor:
        """Takes memory."""

    freed: list[weakref.ref[Tensor]] = []

    def fails(image: Image.Image, prompt: str) -> dict[str, float]:
        tensor = Tensor()
        freed.append(weakref.ref(tensor))
        raise OutOfMemoryError

    dispatcher = Dispatcher(FakeVerifier(fails), 4)
    dispatcher.start()
    (verdict,) = dispatcher.submit([np.asarray(noise(8, 8))], ["a cat"], "diagnose")
    dispatcher.close()
    assert isinstance(verdict.exception(0), OutOfMemoryError)
    assert freed[0]() is None


class Live(FakeVerifier):
    """Is fed as an ImageDoctor; the test answers."""

    live_details = ("diagnose",)
    room, failed = 2, False

    def __init__(self) -> None:
        super().__init__()
        self.entered: SimpleQueue[Future[Verdict]] = SimpleQueue()

    @contextmanager
    def live(self) -> Iterator[Live]:
        yield self

    def submit(
        self, image: Any, prompt: str, detail: str, verdict: Future[Verdict]
    ) -> Future[Verdict]:
        self.entered.put(verdict)
        return verdict


def test_a_client_that_goes_away_leaves_the_verifier_and_a_full_queue_is_said() -> None:
    body, verifier = request_of([np.asarray(noise(8, 8))], ["x"], "diagnose", False), Live()
    with serving_apart(verifier, queue=1) as url, ThreadPoolExecutor(1) as threads:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            head = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(f"POST /v1/score HTTP/1.1\r\nhost: x\r\n{head}".encode() + body)
            left = verifier.entered.get(timeout=SECONDS)
        with pytest.raises(CancelledError):
            left.result(SECONDS)
        second = threads.submit(ask, url, body)
        answer = verifier.entered.get(timeout=SECONDS)
        full = ask(url, body)
        assert full.status_code == 429
        assert "1 pictures may wait for the verifier, and 1 do" in full.text
        answer.set_result(Verdict({"overall": 1.0}))
        assert second.result(SECONDS).is_success


def test_messages_of_any_parts_arrive_as_they_are() -> None:
    rng = np.random.default_rng(0)
    sizes = [[], [0], [1 << 22], [5000] * 1300, [0, 10, 1 << 20, 4096, 4095]]
    messages = [[rng.integers(0, 256, size, np.uint8) for size in part] for part in sizes]
    ours, theirs = socket.socketpair()
    with theirs, ThreadPoolExecutor(1) as threads:
        found = threads.submit(lambda: list(Channel(theirs).messages()))
        with ours:
            for message in messages:
                Channel(ours).send(message)
        for message, other in zip(messages, found.result(SECONDS), strict=True):
            assert list(map(bytes, message)) == list(map(bytes, other))


def test_pairs_that_cannot_be_sent_fail_and_a_closed_proxy_takes_none() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        proxy = DispatcherProxy(Channel(ours), 4, waited=lambda seconds: None)
        (verdict,) = proxy.submit([np.asarray(noise(8, 8))], ["x"], "score")
        with pytest.raises(BrokenPipeError):
            verdict.result(SECONDS)
        proxy.close()
        with pytest.raises(Refused, match="This server is ending"):
            proxy.submit([np.asarray(noise(8, 8))], ["x"], "score")


def test_pairs_are_sent_before_they_are_taken_back_many_at_a_time() -> None:
    ours, theirs = socket.socketpair()
    gate = Event()

    class Slow(Channel):
        def send(self, message: object) -> None:
            assert gate.wait(SECONDS)
            super().send(message)

    with ours, theirs:
        proxy = DispatcherProxy(Slow(ours), 9, waited=lambda seconds: None)
        first = proxy.submit([np.asarray(noise(8, 8))] * 2, ["x", "y"], "score")
        assert all([verdict.cancel() for verdict in first])
        (second,) = proxy.submit([np.asarray(noise(8, 8))], ["z"], "score")
        assert second.cancel()
        gate.set()
        proxy.close()
        messages = Channel(theirs).messages()
        assert next(messages).prompts == ["x", "y"]
        assert next(messages) == Withdrawn([0, 1])
        assert next(messages).prompts == ["z"]
        assert next(messages) == Withdrawn([2])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_verdict_that_cannot_be_sent_ends_the_server_instead_of_leaving_clients_waiting() -> None:
    class Unsendable(FakeVerifier):
        def verify(self, *args: Any, **options: Any) -> list[Verdict]:
            return [Verdict({}, boxes=(lambda: None,))]  # type: ignore[arg-type]

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = VerifierProcess(Unsendable(), host="127.0.0.1", port=port, limits=RequestLimits())
    with ThreadPoolExecutor(1) as threads:
        served = threads.submit(process.run)
        with pytest.raises(ServerError):
            Remote(f"http://127.0.0.1:{port}", patience=2).verify([noise(8, 8)], ["x"])
        with pytest.raises(ServerProcessError, match="by signal 9"):
            served.result(SECONDS)


def test_an_http_process_that_does_not_start_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    process = VerifierProcess(FakeVerifier(), host="127.0.0.1", port=0, limits=RequestLimits())
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ServerProcessError, match="it has ended with status 1"):
        process.run()
    assert "No module named 'tts_verifier'" in capfd.readouterr().err
