"""A verifier in a server is the same verifier: its verdicts, settings, and failures."""

from __future__ import annotations

import http.server
import json
import math
import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import serving
from threads import at_once
from tiny_imagedoctor import noise

import tts_verifier
from tts_verifier.errors import InputError, ServerError
from tts_verifier.scoring.batches import images_at_once
from tts_verifier.testing import FakeVerifier, check_verifier
from tts_verifier.types import Verdict
from tts_verifier.verifiers import load_verifier
from tts_verifier.verifiers.remote import Remote, connection
from tts_verifier.verifiers.remote.protocol import pack_message

IMAGES = [noise(20 + 4 * (i % 5), 12, seed=i) for i in range(100)]
PROMPTS = [f"picture {i}" for i in range(100)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(FakeVerifier()) as url:
        yield url


@contextmanager
def answering(
    answer: Callable[[str], tuple[int, bytes]],
    headers: Mapping[str, str] = MappingProxyType({}),
    heard: Callable[[int], None] = lambda port: None,
) -> Iterator[str]:
    """A server that answers whatever a test wants, and tells from which port it was asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            heard(self.client_address[1])
            status, body = answer(self.path)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *about: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


ABOUT = {
    "protocol": 1,
    "version": "0",
    "verifier": {"model": "x"},
    "objective": {"a": 1.0},
    "score_names": None,
    "map_names": None,
    "details": ["diagnose"],
    "limits": {"images": 4, "body": 10**6, "pixels": 10**6},
}


def test_it_is_a_verifier_as_the_one_that_is_served(url: str) -> None:
    remote = Remote(url)
    assert images_at_once(remote)[0] == 8 * 32, "its connections, of so many pictures each"
    check_verifier(remote, IMAGES[:3], PROMPTS[:3])
    assert remote.settings == FakeVerifier().settings
    assert remote.objective.weights == FakeVerifier().objective.weights
    assert list(remote.score_names or ()) == list(FakeVerifier().score_names or ())
    assert list(remote.map_names or ()) == ["misalignment", "artifact"]


@pytest.mark.parametrize("detail", ["diagnose", "score"])
def test_verdicts_are_those_of_this_process(url: str, detail: Any) -> None:
    here = FakeVerifier().verify(IMAGES, PROMPTS, detail=detail)
    there = Remote(url).verify(IMAGES, PROMPTS, detail=detail)
    for one, other in zip(here, there, strict=True):
        assert (one.scores, one.boxes, one.text) == (other.scores, other.boxes, other.text)
        assert (one.detail, one.cost) == (other.detail, other.cost)
        assert list(one.heatmaps) == list(other.heatmaps)
        for name in one.heatmaps:
            assert np.array_equal(one.heatmaps[name], other.heatmaps[name])


def test_the_reason_of_a_missing_score_comes_along() -> None:
    class Mute(FakeVerifier):
        def verify(self, images, prompts, *, detail="diagnose"):
            return [Verdict({"overall": math.nan}, error="too long: \ud83d") for _ in images]

    with serving(Mute()) as url:
        (verdict,) = Remote(url).verify(IMAGES[:1], ["x"])
    assert math.isnan(verdict.scores["overall"])
    assert verdict.error == "too long: \\ud83d"


def test_no_pictures_get_no_verdicts(url: str) -> None:
    assert Remote(url).verify([], []) == []


def test_threads_share_one(url: str) -> None:
    remote, fake = Remote(url), FakeVerifier()

    def call(start: int) -> list[Any]:
        part = slice(start, start + 5)
        return [v.scores for v in remote.verify(IMAGES[part], PROMPTS[part])]

    found = at_once([lambda i=i: call(5 * i) for i in range(12)])
    for i, scores in enumerate(found):
        part = slice(5 * i, 5 * i + 5)
        assert scores == [v.scores for v in fake.verify(IMAGES[part], PROMPTS[part])]


def test_recipes_and_commands_know_it(url: str, tmp_path: Path) -> None:
    assert isinstance(load_verifier("remote", options={"url": url}), Remote)
    from tts_verifier.recipe import load_recipe, run_recipe

    recipe = tmp_path / "remote.yaml"
    recipe.write_text(
        "prompts: [a red circle]\ngenerator: {name: fake}\nstrategy: {name: best_of_n, n: 2}\n"
        f"verifier: {{name: remote, url: '{url}'}}\n"
    )
    outcome = run_recipe(load_recipe(recipe), output=tmp_path / "run")
    assert not outcome.failure


def test_nan_comes_back_as_nan() -> None:
    with serving(FakeVerifier(unparsable=lambda image, prompt: True)) as url:
        (verdict,) = Remote(url).verify(IMAGES[:1], ["x"])
    assert all(math.isnan(score) for score in verdict.scores.values())
    assert not verdict.heatmaps


def test_what_the_verifier_refuses_is_refused_here_too() -> None:
    with serving(load_verifier("shapes-oracle")) as url:
        remote = Remote(url)
        with pytest.raises(InputError, match="Picture 1 of the request: "):
            remote.verify([Image.new("RGB", (8, 8))] * 2, ["a red circle", "nonsense"])
    with pytest.raises(InputError, match="one prompt for each image"):
        remote.verify(IMAGES[:2], ["x"])


def test_an_error_of_the_verifier_is_no_verdict() -> None:
    def failing(image: Image.Image, prompt: str) -> dict[str, float]:
        raise ZeroDivisionError("by zero")

    with (
        serving(FakeVerifier(failing)) as url,
        pytest.raises(RuntimeError, match="failed: ZeroDivisionError: by zero"),
    ):
        Remote(url).verify(IMAGES[:1], ["x"])


def test_the_verifier_must_be_the_expected_one(url: str) -> None:
    assert Remote(url, expect={"model": "fake"})
    with pytest.raises(ServerError, match=r"whose model is 'doctor'; its settings are .*fake"):
        Remote(url, expect={"model": "doctor"})


def test_a_token_from_a_file_may_end_with_a_line_break() -> None:
    with serving(FakeVerifier(), token="secret\n") as url:
        assert Remote(url, token="secret").verify(IMAGES[:1], ["x"])
        assert Remote(url, token=" secret\n").verify(IMAGES[:1], ["x"])


@pytest.mark.parametrize("token", ["sécret", "sec\nret", "sec ret", "sec\x00ret"])
def test_a_token_that_no_header_holds_is_refused_at_once_and_not_shown(token: str) -> None:
    with pytest.raises(InputError, match="printable ASCII without spaces") as raised:
        Remote("http://127.0.0.1:9", token=token)
    assert "ret" not in str(raised.value)


def test_a_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(FakeVerifier(), token="secret") as url:
        with pytest.raises(ServerError, match=r"wants a token.* Set TTS_SERVE_TOKEN"):
            Remote(url)
        assert Remote(url, token="secret", timeout=math.inf).verify(IMAGES[:1], ["x"])
        monkeypatch.setenv("TTS_SERVE_TOKEN", "secret")
        assert Remote(url).verify(IMAGES[:1], ["x"])


def test_a_server_that_is_gone_is_asked_again_and_then_said_to_be_gone() -> None:
    with serving(FakeVerifier()) as url:
        remote = Remote(url, patience=0.3)
        assert remote.verify(IMAGES[:1], ["x"])
    with pytest.raises(ServerError, match=r"does not answer.*asked for 0.3 s.*tts-serve"):
        remote.verify(IMAGES[:1], ["x"])


def test_a_server_that_is_full_is_asked_again() -> None:
    answers = iter([(503, b"{}"), (429, b"{}"), (200, json.dumps(ABOUT).encode())])
    with answering(lambda path: next(answers)) as url:
        assert Remote(url, patience=30).settings == {"model": "x"}


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>", "is no object of JSON"),
        (200, b"[" * 10**5, "is no object of JSON"),
        (200, b'{"protocol": 1, "protocol": 2}', "is no object of JSON"),
        (200, b'{"protocol": 1e999}', "is no object of JSON"),
        (200, b'{"protocol": 2}', "must speak version 1 of the protocol, it says 2"),
        (307, b"", "must be a tts-serve, it answers 307: Temporary Redirect"),
        (408, b"{}", "answers 408"),
        (404, b"<html>not here", "must be a tts-serve, it answers 404: <html>not here"),
        (413, b"<html>too large", "must be a tts-serve, it answers 413: <html>too large"),
    ],
)
def test_another_server_is_known(status: int, body: bytes, message: str) -> None:
    with answering(lambda path: (status, body)) as url, pytest.raises(ServerError, match=message):
        Remote(url, patience=0)


def test_a_server_without_tls_is_told_at_once() -> None:
    with (
        answering(lambda path: (200, b"{}")) as url,
        pytest.raises(ServerError, match=r"SSL.* its url must begin with http:// where it has non"),
    ):
        Remote(url.replace("http", "https"))


def test_a_token_that_a_proxy_repeats_is_not_shown() -> None:
    with (
        answering(lambda path: (403, b"forbidden: Bearer sesame-open")) as url,
        pytest.raises(ServerError, match=r"it answers 403: forbidden: Bearer \*\*\*$"),
    ):
        Remote(url, token="sesame-open")


@pytest.mark.parametrize(
    "changed",
    [
        {"verifier": None},
        {"objective": {"a": "x"}},
        {"score_names": "abc"},
        {"score_names": [1]},
        {"map_names": 3},
        {"details": []},
        {"details": ["look"]},
        {"limits": None},
        {"limits": {"images": 0, "body": 1}},
        {"limits": {"images": "4", "body": 1}},
    ],
)
def test_a_server_must_say_what_it_serves(changed: dict[str, Any]) -> None:
    about = json.dumps(ABOUT | changed).encode()
    with (
        answering(lambda path: (200, about)) as url,
        pytest.raises(ServerError, match="must say what it serves as tts-serve does"),
    ):
        Remote(url, patience=0)


@pytest.mark.parametrize("name", ["verifier", "objective", "details", "limits", "score_names"])
def test_a_server_must_say_all_of_it(name: str) -> None:
    about = json.dumps({key: value for key, value in ABOUT.items() if key != name}).encode()
    with (
        answering(lambda path: (200, about)) as url,
        pytest.raises(ServerError, match=f"must say what it serves.*{name}"),
    ):
        Remote(url, patience=0)


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (200, {"content-encoding": "gzip"}, "must not be compressed; that of 127.0.0.1 is: gzip"),
        (503, {"retry-after": "\u00b2"}, r"answers 503: nonsense\. It is asked for 0 s at most"),
        (503, {"retry-after": "9" * 400}, "503: nonsense, and wants inf s of patience"),
        (
            429,
            {"retry-after": "7200"},
            r"429: nonsense, and wants 7200 s of patience\. It is asked",
        ),
    ],
)
def test_headers_that_cannot_be_read_are_the_servers_problem(
    status: int, headers: dict[str, str], message: str
) -> None:
    with (
        answering(lambda path: (status, b"nonsense"), headers) as url,
        pytest.raises(ServerError, match=message),
    ):
        Remote(url, patience=0)


def pairs_of(message: object) -> bytes:
    return pack_message(message, {})  # type: ignore[arg-type]


RESULT = {"scores": {"a": 1.0}, "boxes": [], "reply": "", "detail": "diagnose", "maps": {}}


def with_results(*results: object, **arrays: Any) -> bytes:
    message = {"protocol": 1, "verifier": {"model": "x"}, "results": results}
    return pack_message(message, {f"0.{name}": array for name, array in arrays.items()})


def map_of(*size: int, box: Any = (0, 0, 1, 1)) -> dict[str, Any]:
    return {"maps": {"m": {"size": size, "box": box}}}


@pytest.mark.parametrize(
    ("changed", "grid", "message"),
    [
        ({"scores": {"a": "0.5"}}, None, "a number must be one or null, got '0.5'"),
        ({"scores": {"a": True}}, None, "a number must be one or null, got True"),
        ({"scores": {"a": 10**400}}, None, "a number must be one or null, got 1000"),
        ({"scores": []}, None, "no attribute 'items'"),
        ({"detail": "look"}, None, "reply and detail must be texts, got '' and 'look'"),
        ({"reply": None}, None, "reply and detail must be texts, got None"),
        ({"error": 7}, None, "error must be a text, got 7"),
        ({"boxes": [[1, 2]]}, None, "expected 4, got 2"),
        (map_of(8, 8), np.zeros(4, "f4"), r"map m must be float32 \(h, w\), got float32 \(4,\)"),
        (map_of(8, 8), np.zeros((0, 4), "f4"), r"map m must be float32 \(h, w\)"),
        (map_of(8, 8), np.zeros((4, 4), "u1"), "got uint8"),
        (map_of(20, 12), np.full((4, 4), 1.5, "f4"), r"map m must be in \[0, 1\]"),
        (map_of(20, 12), np.full((4, 4), np.nan, "f4"), r"map m must be in \[0, 1\]"),
        (map_of(10**8, 10**8), np.zeros((4, 4), "f4"), r"must lie over a picture of \(20, 12\)"),
        (map_of(20, 12, box=(2, 2, 3, 3)), np.zeros((4, 4), "f4"), "must lie over a picture"),
    ],
)
def test_a_result_that_is_none_is_no_verdict(
    changed: dict[str, Any], grid: Any, message: str
) -> None:
    body = with_results(RESULT | changed, **({} if grid is None else {"m": grid}))
    known = json.dumps(ABOUT).encode()
    with answering(lambda path: (200, known if "verifier" in path else body)) as url:
        remote = Remote(url, patience=0)
        with pytest.raises(ServerError, match=message):
            remote.verify(IMAGES[:1], ["x"])


def test_an_edge_of_a_box_that_is_not_known_is_nan() -> None:
    body = with_results(RESULT | {"boxes": [[0, 0, 1, None]]})
    known = json.dumps(ABOUT).encode()
    with answering(lambda path: (200, known if "verifier" in path else body)) as url:
        (verdict,) = Remote(url, patience=0).verify(IMAGES[:1], ["x"])
    assert math.isnan(verdict.boxes[0][3])


def test_an_answer_may_not_be_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_MOST_ANSWER", 1000)
    with (
        answering(lambda path: (200, b" " * 1001)) as url,
        pytest.raises(ServerError, match=r"may have 1,000 bytes, that of 127\.0\.0\.1 has more"),
    ):
        Remote(url, patience=0)


def test_an_answer_that_comes_byte_by_byte_takes_no_longer_than_the_timeout() -> None:
    ended = threading.Event()

    def drip(server: socket.socket) -> None:
        accepted, _ = server.accept()
        with accepted, suppress(ConnectionError):
            accepted.sendall(b"HTTP/1.1 200 OK\r\nx: ")
            while not ended.wait(0.02):
                accepted.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ServerError, match=r"the answer took more than 0\.1 s"):
            Remote(url, patience=0, timeout=0.1)
        ended.set()
        thread.join()


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_process_and_a_copy_have_connections_of_their_own() -> None:
    known, ports = json.dumps(ABOUT).encode(), list[int]()

    def answer(path: str) -> tuple[int, bytes]:
        return 200, known if "verifier" in path else with_results(RESULT)

    with answering(answer, heard=ports.append) as url:
        remote = Remote(url, patience=0)
        remote.verify(IMAGES[:1], ["x"])
        if (child := os.fork()) == 0:
            status = 1
            try:
                remote.verify(IMAGES[:1], ["x"])
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        remote.verify(IMAGES[:1], ["x"])
        pickle.loads(pickle.dumps(remote)).verify(IMAGES[:1], ["x"])
    first, _, forked, again, copied = ports
    assert again == first
    assert len({first, forked, copied}) == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\x80\x04pickled", "must answer as tts-serve does.*pickle"),
        (pairs_of({"protocol": 1, "verifier": {"model": "x"}}), "must answer as tts-serve does"),
        (
            pairs_of({"protocol": 1, "verifier": {"model": "x"}, "results": []}),
            "must answer 1 pictures, and answered 0",
        ),
        (
            pairs_of({"protocol": 1, "verifier": {"model": "y"}, "results": [RESULT]}),
            "has another verifier than at first: {'model': 'y'} instead of {'model': 'x'}",
        ),
        (
            pairs_of(
                {
                    "protocol": 1,
                    "verifier": {"model": "x"},
                    "results": [RESULT | {"maps": {"m": {}}}],
                }
            ),
            "must answer as tts-serve does",
        ),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_no_verdict(body: bytes, message: str) -> None:
    about = json.dumps(ABOUT).encode()
    with answering(lambda path: (200, about if "verifier" in path else body)) as url:
        remote = Remote(url, patience=0)
        with pytest.raises(ServerError, match=message):
            remote.verify(IMAGES[:1], ["x"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "host:8000"}, "must begin with http"),
        ({"url": "ftp://host"}, "must begin with http"),
        ({"url": "http://"}, "must begin with http"),
        ({"url": 3}, "must begin with http"),
        ({"url": "http://host:99999"}, "must begin with http"),
        ({"url": "http://host:8000/?a=b"}, "and no query"),
        ({"url": "http://" + "a" * 300}, "must begin with http"),
        ({"timeout": 0}, "timeout must be seconds above 0"),
        ({"expect": ["model"]}, "expect must be settings with their values"),
        ({"token": 3}, "token must be a text, got a int"),
        ({"timeout": -1}, "timeout must be seconds"),
        ({"patience": "long"}, "patience must be seconds"),
        ({"connections": 0}, "connections must be from 1 to 256"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Remote(**{"url": "http://127.0.0.1:9", "patience": 0, **options})


def test_httpx_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "httpx", None)
    with pytest.raises(InputError, match=r'pip install "tts-verifier\[serve\]"'):
        Remote("http://127.0.0.1:9", patience=0)


def test_pictures_are_ranked_as_here(url: str) -> None:
    here = FakeVerifier().rerank(IMAGES[:9], "x", looks=2)
    there = Remote(url).rerank(IMAGES[:9], "x", looks=2)
    assert [item.index for item in here] == [item.index for item in there]
    assert tts_verifier.Verifier is Remote.__mro__[1]
