"""Requests that are wrong, large, slow or hostile get a clear error; the others their answers."""

from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from chat_server import chat_server
from PIL import Image
from safetensors.numpy import save
from serving import SECONDS, serving
from tiny_imagedoctor import noise

from tts_verifier.errors import CheckpointError, InputError, RunError, ServerError, TTSError
from tts_verifier.serve.app import create_app
from tts_verifier.serve.limits import Memory, MemoryShare, RequestLimits
from tts_verifier.serve.requests import asked_in_json
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Verdict
from tts_verifier.verifiers import load_verifier
from tts_verifier.verifiers.remote import Remote
from tts_verifier.verifiers.remote.protocol import MEDIA_TYPE, request_of
from tts_verifier.verifiers.remote.protocol import pack_message as pack

PIXELS = np.asarray(noise(8, 8))
GOOD = request_of([PIXELS], ["a cat"], "diagnose", True)
LIMITS = {"body": 10**6, "pixels": 10**4, "images": 4, "prompt": 100}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(FakeVerifier(), **LIMITS) as url:
        yield url


@pytest.fixture(autouse=True)
def _still_answers(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "url" in request.fixturenames:
        assert ask(request.getfixturevalue("url"), GOOD).status_code == 200


def ask(url: str, body: bytes, kind: str = MEDIA_TYPE, path: str = "/v1/score") -> httpx.Response:
    with httpx.Client(timeout=SECONDS, verify=False) as client:
        return client.post(url + path, content=body, headers={"content-type": kind})


def as_json(**changes: Any) -> bytes:
    return json.dumps({"prompts": ["a cat"], "images": [png(8, 8)], **changes}).encode()


def png(width: int, height: int) -> str:
    """A PNG of one colour in a few bytes a row, written without holding its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


def error_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text[:300]
    return str(response.json()["error"]["message"])


class Harmful:
    def __reduce__(self) -> Any:
        return (open, ("/tmp/never-written", "w"))


HEADER = GOOD[8 : 8 + int.from_bytes(GOOD[:8], "little")]


def with_header(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + GOOD[8 + len(HEADER) :]


def with_array(shape: list[int]) -> bytes:
    """A request whose array has a shape, and no elements."""
    array = {"dtype": "U8", "shape": shape, "data_offsets": [0, 0]}
    about = {"message": json.dumps({"prompts": ["x"]})}
    header = json.dumps({"__metadata__": about, "image.0": array}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "0 bytes"),
        (GOOD[:7], "cut off or something else"),
        (GOOD[:50], "cut off or something else"),
        (GOOD[:-1], "must be whole safetensors"),
        (GOOD + b"more", "must be whole safetensors"),
        (b"\xff" * 64, "cut off or something else"),
        (pickle.dumps(Harmful()), "is a pickle, which could run code and is never read"),
        (pickle.dumps({"images": [], "prompts": []}), "is a pickle"),
        (with_header(b"{" * 300), "must be whole safetensors"),
        (with_header(b"[" * 4000), "must be whole safetensors"),
        (with_header(HEADER.replace(b"8,8,3", b"9,9,9")), "must be whole safetensors"),
        (with_header(HEADER.replace(b"[0,192]", b"[0,999]")), "must be whole safetensors"),
        (with_header(HEADER.replace(b"[8,8,3]", b"[-8,8,3]")), "must be whole safetensors"),
        (with_header(HEADER.rstrip()[:-1] + b"," + HEADER[1:]), "comes twice"),
        (with_array([0, 2**62, 3]), "a shape that numpy can hold; that of image.0 is .0, 46"),
        (with_array([1] * 65 + [0]), "a shape that numpy can hold"),
        (save({"image.0": PIXELS}), "with a `message` of JSON"),
        (save({"image.0": PIXELS}, {"message": "{"}), "with a `message` of JSON"),
        (save({"image.0": PIXELS}, {"message": "[" * 4000}), "with a `message` of JSON"),
        (save({"image.0": PIXELS}, {"message": "[]"}), "must be an object of JSON, got a list"),
        (save({"image.0": PIXELS.astype("f8")}, {"message": "{}"}), "Arrays must be U8 or F32"),
        (pack({}, {"image.0": PIXELS}), "prompts: Field required"),
        (pack({"prompts": ["x"]}, {}), "got 0 pictures and 1 prompts"),
        (pack({"prompts": []}, {}), "must have a picture, it has none"),
        (pack({"prompts": ["x"]}, {"image.1": PIXELS}), "without a gap, got image.1"),
        (pack({"prompts": ["x"]}, {"picture": PIXELS}), "without a gap, got picture"),
        (
            pack({"prompts": ["x", "y"]}, {"image.0": PIXELS}),
            "got 1 pictures and 2 prompts",
        ),
        (pack({"prompts": ["x"]}, {"images": PIXELS}), "got 8 pictures and 1 prompts"),
        (
            pack({"prompts": ["x"]}, {"images": PIXELS[None, :, :, :2]}),
            r"uint8 \(N, H, W, 3\)",
        ),
        (
            pack({"prompts": ["x"]}, {"image.0": PIXELS[:, :, 0]}),
            r"must be uint8 \(H, W, 3\)",
        ),
        (
            pack({"prompts": ["x"]}, {"image.0": PIXELS.astype("f4")}),
            r"must be uint8 \(H, W, 3\)",
        ),
        (pack({"prompts": ["x"]}, {"image.0": PIXELS[:0]}), "needs pixels"),
        (pack({"prompts": ["x"]}, {"image.0": PIXELS[0, :, 0]}), "must be a picture file"),
        (pack({"prompts": ["x"], "protocol": 2}, {"image.0": PIXELS}), "speaks version 1"),
        (pack({"prompts": ["x"], "images": []}, {"image.0": PIXELS}), "leave `images` out"),
    ],
)
def test_a_body_of_safetensors_that_cannot_be_read(url: str, body: bytes, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error_of(ask(url, body), 400))


def test_a_letter_beyond_ascii_does_not_multiply_what_a_body_takes() -> None:
    """As one text of Python's, four bytes stand for each letter beside it."""
    limits = RequestLimits(body=4 * 10**6)
    body = json.dumps({"prompts": ["🐈"], "images": ["A" * 10**6]}, ensure_ascii=False).encode()
    tracemalloc.start()
    try:
        with MemoryShare(Memory(limits.memory)) as share, pytest.raises(InputError, match="bytes"):
            asked_in_json(body, limits, share)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Three copies of a byte for each letter, and some for other threads.
    assert most < 4 * len(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "must be an object of JSON: Invalid JSON"),
        (b"[" * 4000, "must be an object of JSON: Invalid JSON"),
        (b"\xff\xfe", "must be an object of JSON: Invalid JSON"),
        (b"NaN", "Invalid JSON: NaN is no number of JSON"),
        (b"3", "the body: Input should be a valid dictionary"),
        (b'{"prompts": ["a cat"],' + as_json()[1:], "the key 'prompts' comes twice"),
        (b'{"a" : "\\"b\\": c", "a"\n:1}', "the key 'a' comes twice"),
        (as_json(maps=None)[:-5] + b'[{"b": [{"c": 1, "c": 1}]}]}', "the key 'c' comes twice"),
        (as_json(prompts="a cat"), "prompts: Input should be a valid list"),
        (as_json(prompts=[3]), "prompts.0: Input should be a valid string"),
        (as_json(prompts=["a", "b"]), "got 1 pictures and 2 prompts"),
        (as_json(images=[]), "got 0 pictures and 1 prompts"),
        (as_json(images=["%%%"]), "Image 0 must be a file in base64"),
        (as_json(images=["é"]), "Image 0 must be a file in base64"),
        (as_json(images=["aGVsbG8="]), "its bytes are none of PNG"),
        (as_json(images=["http://169.254.169.254/x,y"]), "Addresses are not fetched"),
        (as_json(images=["file:///etc/passwd,y"]), "Addresses are not fetched"),
        (as_json(images=[png(8, 8)[:60]]), "Image 0"),
        (as_json(detail="look"), "detail: Input should be 'score' or 'diagnose'"),
        (as_json(maps=[0, 4]), "A grid must be rows and columns from 1 to 1024"),
        (as_json(maps=[4, 10**9]), "A grid must be rows and columns from 1 to 1024"),
        (as_json(maps=[4]), "A grid must be rows and columns from 1 to 1024"),
        (as_json(colour="red"), "colour: Extra inputs are not permitted"),
        (as_json(protocol=0), "speaks version 1 of the protocol, the request says 0"),
    ],
)
def test_a_body_of_json_that_cannot_be_read(url: str, body: bytes, message: str) -> None:
    assert message in error_of(ask(url, body, "application/json"), 400)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (as_json(images=[png(200, 200)]), "10,000 pixels; image 0 has 200 x 200"),
        (as_json(images=[png(30_000, 3)]), "image 0 has 30000 x 3"),
        (as_json(images=[png(8, 8)] * 5, prompts=["x"] * 5), "may have 4 pictures"),
        (as_json(prompts=["x" * 101]), "may have 100 characters, prompt 0 has 101"),
        (as_json(maps=[1000, 1000]), "may have 1,000,000 bytes, these would have 8,000,000"),
        (b" " * (10**6 + 1), "may have 1,000,000 bytes, this one has 1,000,001"),
        (as_json(prompts=[[]] * 5000), "may have 4,196 commas and brackets"),
    ],
)
def test_what_is_too_large_is_refused_before_it_takes_memory(
    url: str, body: bytes, message: str
) -> None:
    assert message in error_of(ask(url, body, "application/json"), 413)


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/v1/score", MEDIA_TYPE, pack({"prompts": [[]] * 5000}, {"image.0": PIXELS})),
        ("/compute", "application/json", json.dumps({"kwargs": [[]] * 5000}).encode()),
        ("/v1/chat/completions", "application/json", json.dumps({"n": [[]] * 5000}).encode()),
    ],
)
def test_many_values_are_refused_before_they_are_parsed(
    url: str, path: str, kind: str, body: bytes
) -> None:
    assert "4,196 commas and brackets" in error_of(ask(url, body, kind, path), 413)


def test_many_small_bombs_are_one_large_one() -> None:
    with serving(FakeVerifier(), body=50_000) as url:
        body = as_json(images=[png(90, 90)] * 3, prompts=["x"] * 3)
        found = error_of(ask(url, body, "application/json"), 413)
        assert "pixels of a request's pictures may have 50,000 bytes; those up to image 2" in found


def test_a_bomb_that_pillow_knows_is_refused_in_our_words() -> None:
    header = base64.b64decode(png(1, 1))
    bomb = header[:16] + struct.pack(">II", 60_000, 60_000) + header[24:29]
    bomb += struct.pack(">I", zlib.crc32(bomb[12:29])) + header[33:]
    with serving(FakeVerifier(), pixels=10**9) as url:
        body = as_json(images=[base64.b64encode(bomb).decode()])
        assert "1,000,000,000 pixels" in error_of(ask(url, body, "application/json"), 413)


@pytest.mark.parametrize("kind", ["application/x-pickle", "text/plain", "", "multipart/form-data"])
def test_another_content_type_is_refused(url: str, kind: str) -> None:
    assert "content-type must be" in error_of(ask(url, pickle.dumps([]), kind), 415)


@pytest.mark.parametrize("path", ["/v1/score", "/compute", "/v1/chat/completions"])
def test_a_compressed_body_is_refused_as_such(url: str, path: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    with httpx.Client(timeout=SECONDS, verify=False) as client:
        found = client.post(url + path, content=gzip.compress(as_json()), headers=headers)
    assert "must not be compressed, its content-encoding is 'gzip'" in error_of(found, 415)


def test_base64_may_have_line_breaks(url: str) -> None:
    lines = base64.encodebytes(base64.b64decode(png(60, 60))).decode()
    assert lines.count("\n") > 1
    assert ask(url, as_json(images=[lines]), "application/json").is_success


@pytest.mark.parametrize("path", ["/compute", "/v1/chat/completions"])
def test_the_other_endpoints_refuse_pickles_too(url: str, path: str) -> None:
    assert "Invalid JSON" in error_of(ask(url, pickle.dumps(Harmful()), path=path), 400)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": [["x"]]}, "Leave out video"),
        ({"condition_images": [["x"]]}, "Leave out condition_images"),
        ({"prompt": None}, "prompt"),
        ({"image": None}, "got 0 pictures and 1 prompts"),
        ({"kwargs": {"detail": "x"}}, "detail: Input should be"),
        ({"prompts": ["a dog"]}, "prompt and prompts are two names of one thing"),
        ({"images": []}, "image and images are two names of one thing"),
    ],
)
def test_what_flow_factory_may_not_ask(url: str, changes: Any, message: str) -> None:
    body = {"prompt": ["a cat"], "image": [png(8, 8)], **changes}
    response = ask(url, json.dumps(body).encode(), "application/json", "/compute")
    assert message in error_of(response, 400)


IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + png(8, 8)}}
TEXT_PART = {"type": "text", "text": "a cat"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": True}, "stream must be false and n 1"),
        ({"n": 2}, "stream must be false and n 1"),
        ({"messages": []}, "must have a list as its content"),
        ({"messages": [{"role": "user", "content": "a cat"}]}, "must have a list as its content"),
        ({"content": [TEXT_PART]}, "must have one image_url, it has 0"),
        ({"content": [TEXT_PART, IMAGE_PART, IMAGE_PART]}, "must have one image_url, it has 2"),
        ({"content": [TEXT_PART, {"type": "input_audio"}]}, "got 'input_audio'"),
        ({"content": [TEXT_PART, 3]}, "must be a text or an image_url"),
        (
            {"content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]},
            "Addresses are not fetched",
        ),
    ],
)
def test_what_an_openai_client_may_not_ask(url: str, changes: Any, message: str) -> None:
    content = changes.pop("content", [TEXT_PART, IMAGE_PART])
    body = {"messages": [{"role": "user", "content": content}], **changes}
    response = ask(url, json.dumps(body).encode(), "application/json", "/v1/chat/completions")
    assert message in error_of(response, 400)


def test_control_characters_are_text_and_half_a_letter_is_none(url: str) -> None:
    text = "\x00 <|im_end|> \u202e \x1b[2J"
    assert ask(url, as_json(prompts=[text]), "application/json").status_code == 200
    # Half a letter is no prompt for any verifier; both endpoints say so.
    said = error_of(ask(url, as_json(prompts=["\ud800"]), "application/json"), 422)
    assert "must be valid Unicode" in said
    half = request_of([PIXELS], ["\ud800"], "diagnose", True)
    assert "must be valid Unicode" in error_of(ask(url, half), 422)


def test_json_may_begin_with_a_mark_and_a_data_uri_may_be_in_capitals(url: str) -> None:
    body = b"\xef\xbb\xbf" + as_json(images=["DATA:image/png;BASE64," + png(8, 8)])
    assert ask(url, body, "application/json").status_code == 200


def test_paths_and_methods_that_are_not_there(url: str) -> None:
    assert "Not Found" in error_of(ask(url, b"", path="/v2/score"), 404)
    with httpx.Client(verify=False) as client:
        refused = client.get(f"{url}/v1/score")
        assert "Method Not Allowed" in error_of(refused, 405)
        assert refused.headers["allow"] == "POST"
        assert client.head(f"{url}/health").status_code == 200


def raw(url: str, data: bytes) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=SECONDS)
    connection.sendall(data)
    return connection


def head(length: int | str) -> bytes:
    return (
        f"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: {MEDIA_TYPE}\r\n"
        f"content-length: {length}\r\n\r\n"
    ).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        head("-5"),
        head("1e3"),
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_refused(url: str, data: bytes) -> None:
    with raw(url, data) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 4")


def test_a_body_that_breaks_off_is_forgotten(url: str) -> None:
    for cut in (0, 20, len(GOOD) - 1):
        raw(url, head(len(GOOD)) + GOOD[:cut]).close()
    with httpx.Client(verify=False) as client:
        for _ in range(SECONDS * 20):
            if "tts_memory_bytes 0.0" in client.get(f"{url}/metrics").text:
                return
            time.sleep(0.05)
    raise AssertionError("memory stays taken")


def test_a_long_body_in_pieces_is_cut_off() -> None:
    start = head(0).replace(b"content-length: 0", b"transfer-encoding: chunked")
    piece = b"20000\r\n" + bytes(0x20000) + b"\r\n"
    with (
        serving(FakeVerifier(), body=10**6, body_seconds=0.3) as url,
        raw(url, start + piece * 8) as connection,
    ):
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_slow_bodies_and_slow_headers_are_cut_off() -> None:
    with serving(FakeVerifier(), body_seconds=0.2, idle_seconds=0.2) as url:
        with raw(url, head(1000) + b"x") as connection:
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")
        for start in (b"", b"POST /v1/sc", b"GET /health HTTP/1.1\r\nhost: x\r\n"):
            with raw(url, start) as connection:
                assert connection.recv(1000) == b""
        assert ask(url, GOOD).status_code == 200


def for_large_maps() -> bytes:
    body = as_json(prompts=["x"] * 4, images=[png(8, 8)] * 4, maps=[1024, 1024])
    return head(len(body)).replace(MEDIA_TYPE.encode(), b"application/json") + body


def test_a_client_that_does_not_read_its_answer_is_cut_off() -> None:
    # The server ends at the end of the block, with this connection open, or the test fails.
    with (
        ExitStack() as opened,
        serving(FakeVerifier(), idle_seconds=0.2) as url,
        httpx.Client(verify=False) as client,
    ):
        opened.enter_context(closing(raw(url, for_large_maps())))
        answered = False
        for _ in range(SECONDS * 20):
            # A connection that was idle while the machine was busy is cut off too.
            with suppress(httpx.TransportError):
                page = client.get(f"{url}/metrics").text
                if answered := 'endpoint="/v1/score",status="200"' in page:
                    break
            time.sleep(0.05)
    assert answered


@pytest.mark.parametrize("requests", [1, 2])
def test_a_client_that_reads_its_answers_slowly_is_cut_off(requests: int) -> None:
    size = 0
    with (
        serving(FakeVerifier(), idle_seconds=0.2) as url,
        raw(url, for_large_maps() * requests) as connection,
        suppress(ConnectionResetError),
    ):
        while part := connection.recv(100_000):
            size += len(part)
            time.sleep(0.01)
    # Of 44 million for each request.
    assert 0 < size < 40_000_000


class Slow(FakeVerifier):
    """Waits until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go_on = threading.Event(), threading.Event()

    def verify(self, images: Sequence[Any], prompts: Any, *, detail: Any = "diagnose") -> Any:
        self.entered.set()
        assert self.go_on.wait(SECONDS)
        return super().verify(images, prompts, detail=detail)


def test_a_client_that_goes_away_leaves_the_queue() -> None:
    verifier = Slow()
    with serving(verifier) as url, httpx.Client(verify=False) as client:
        first = raw(url, head(len(GOOD)) + GOOD)
        assert verifier.entered.wait(SECONDS)
        with ThreadPoolExecutor(2) as threads:
            second = raw(url, head(len(GOOD)) + GOOD)
            third = threads.submit(ask, url, GOOD)
            wait_for(client, url, 3)
            second.close()
            wait_for(client, url, 2)
            verifier.go_on.set()
            assert third.result(SECONDS).status_code == 200
            first.close()
    assert verifier.trace == ["v1", "v1"]


def wait_for(client: httpx.Client, url: str, waiting: int) -> None:
    end = time.monotonic() + SECONDS
    while client.get(f"{url}/health").json()["waiting"] != waiting:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_queue_and_a_slow_verifier_are_said() -> None:
    verifier = Slow()
    with serving(verifier, queue=1, answer_seconds=0.5) as url:
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(ask, url, GOOD)
            assert verifier.entered.wait(SECONDS)
            full = ask(url, GOOD)
            assert "1 pictures may wait for the verifier, and 1 do" in error_of(full, 429)
            assert full.headers["retry-after"] == "1"
            assert "has not answered within 0.5 s" in error_of(first.result(SECONDS), 504)
        verifier.go_on.set()


def test_all_requests_together_have_a_limit_too() -> None:
    verifier, two = Slow(), 2 * (len(GOOD) + PIXELS.size)
    with (
        serving(verifier, body=two // 3, memory=two) as url,
        httpx.Client(verify=False) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        others = [threads.submit(ask, url, GOOD) for _ in range(2)]
        wait_for(client, url, 2)
        found = ask(url, GOOD)
        assert "Requests under way may take" in error_of(found, 503)
        assert found.headers["retry-after"] == "1"
        verifier.go_on.set()
        assert [other.result(SECONDS).status_code for other in others] == [200, 200]


def test_no_request_is_larger_than_all_may_be() -> None:
    RequestLimits(body=10, memory=30)
    with pytest.raises(
        InputError, match=r"at least three times .* got 29 and 10 bytes\. Raise --max"
    ):
        RequestLimits(body=10, memory=29)


def test_a_refusal_at_the_last_part_of_a_body_says_why() -> None:
    chunked = head(0).replace(b"content-length: 0", b"transfer-encoding: chunked")
    with serving(FakeVerifier(), body=len(GOOD) - 1) as url:
        found = ask(url, GOOD)
        assert "A request may have" in error_of(found, 413)
        assert "retry-after" not in found.headers
    with (
        serving(FakeVerifier(), body=100) as url,
        raw(url, chunked + b"65\r\n" + bytes(0x65) + b"\r\n0\r\n\r\n") as connection,
    ):
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


class OutOfMemory(FakeVerifier):
    """Has memory for so many pictures."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def verify(self, images: Sequence[Any], prompts: Any, *, detail: Any = "diagnose") -> Any:
        if len(images) > self.most:
            self.trace.append(f"!{len(images)}")
            raise MemoryError
        return super().verify(images, prompts, detail=detail)


def test_where_memory_runs_out_batches_become_smaller() -> None:
    verifier = OutOfMemory(3)
    with serving(verifier) as url:
        images = [noise(8, 8, seed=i) for i in range(8)]
        found = Remote(url, connections=1).verify(images, ["x"] * 8)
        Remote(url, connections=1).verify(images, ["x"] * 8)
    expected = FakeVerifier().verify(images, ["x"] * 8)
    assert [v.scores for v in found] == [v.scores for v in expected]
    assert verifier.trace == ["!8", "!4", "v2", "v2", "!4", "v2", "v2", "v2", "v2", "v2", "v2"]


def test_where_it_runs_out_for_one_picture_the_client_is_told_to_try_later() -> None:
    with serving(OutOfMemory(0)) as url:
        found = ask(url, GOOD)
        assert "The verifier's memory ran out. Try again, with fewer" in error_of(found, 503)
        assert found.headers["retry-after"] == "2"
        with httpx.Client(verify=False) as client:
            health = client.get(f"{url}/health").json()
        assert health == {"status": "ok", "waiting": 0, "last_failure": "MemoryError: "}


def test_a_failure_is_told_in_full_only_to_who_has_the_token() -> None:
    def scores(image: Image.Image, prompt: str) -> dict[str, float]:
        raise ZeroDivisionError(prompt)

    gate = Gate(scores)
    gate.go_on.set()
    bearer = {"authorization": "Bearer secret"}
    with serving(gate, token="secret") as url, httpx.Client(verify=False) as client:
        sent = client.post(
            f"{url}/v1/score", content=GOOD, headers={"content-type": MEDIA_TYPE, **bearer}
        )
        assert sent.status_code == 500
        found = [client.get(f"{url}/health", headers=h).json() for h in ({}, bearer)]
    expected = ["ZeroDivisionError", "ZeroDivisionError: a cat"]
    assert [health["last_failure"] for health in found] == expected


class Failing(FakeVerifier):
    """Fails in every call."""

    def __init__(self, problem: Exception) -> None:
        super().__init__()
        self.problem = problem

    def verify(self, images: Sequence[Any], prompts: Any, *, detail: Any = "diagnose") -> Any:
        self.trace.append(f"!{len(images)}")
        raise self.problem


def test_a_verifier_that_asks_a_server_that_is_away_may_be_asked_again() -> None:
    with serving(Failing(ServerError("http://other does not answer.", transient=True))) as url:
        found = ask(url, GOOD)
    assert "http://other does not answer" in error_of(found, 503)
    assert found.headers["retry-after"] == "5"


@pytest.mark.parametrize("kind", [ServerError, RunError, CheckpointError])
def test_what_waiting_does_not_cure_is_told_at_once(kind: type[TTSError]) -> None:
    with serving(Failing(kind("The key is wrong."))) as url:
        found = ask(url, GOOD)
        assert error_of(found, 424) == "The key is wrong."
        assert "retry-after" not in found.headers
        remote = Remote(url)
        with pytest.raises(ServerError, match=r"^The verifier of the server at .* The key is wron"):
            remote.verify([PIXELS], ["x"])
        with httpx.Client(verify=False) as client:
            health = client.get(f"{url}/health").json()
        assert health["last_failure"] == f"{kind.__name__}: The key is wrong."


def test_a_judge_with_a_wrong_key_is_told_to_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret123")
    with chat_server() as endpoint:
        endpoint.answers = [(401, {"error": {"message": "no such key: sk-secret123"}}, {})]
        judge = load_verifier("openai", options={"model": "m", "base_url": endpoint.url})
        with serving(judge) as url:
            remote = Remote(url)
            with pytest.raises(ServerError, match=r"cannot work: The endpoint.* key: \*\*\*"):
                remote.verify([PIXELS] * 2, ["x"] * 2)
            # A server that asks this one tells its clients too.
            with serving(remote) as further, pytest.raises(ServerError, match=r"key: \*\*\*"):
                Remote(further).verify([PIXELS], ["x"])


def test_a_batch_asks_a_server_that_refuses_once() -> None:
    verifier = Failing(ServerError("no"))
    with serving(verifier) as url:
        assert (
            error_of(ask(url, request_of([PIXELS] * 4, ["x"] * 4, "diagnose", True)), 424) == "no"
        )
    assert verifier.trace == ["!4"]


def test_a_verifier_owes_a_verdict_for_each_picture() -> None:
    class Forgets(FakeVerifier):
        def verify(self, *args: Any, **kwargs: Any) -> list[Verdict]:
            return []

    with serving(Forgets()) as url:
        found = error_of(ask(url, GOOD), 424)
    assert "Forgets must return a verdict for each of 1 images, in a list; it returned 0" in found


class Engines(FakeVerifier):
    """Is fed as an ImageDoctor, and its engines fail while a picture is prepared."""

    live_details = ("diagnose",)
    room, failed = 1, False

    @contextmanager
    def live(self) -> Iterator[Any]:
        self.failed = False
        yield self

    def submit(self, *pair: Any) -> Any:
        self.failed = True
        raise InputError("The queue is closed.")


def test_engines_that_fail_on_a_picture_may_be_asked_again_for_the_others() -> None:
    with serving(Engines()) as url:
        assert "engine failed on another picture" in error_of(ask(url, GOOD), 503)


class Panic(BaseException):
    """As libraries in Rust raise it."""


@pytest.mark.parametrize("problem", [Panic("broken"), SystemExit(3)])
def test_what_is_no_exception_does_not_end_the_verifiers_thread(problem: BaseException) -> None:
    def scores(image: Image.Image, prompt: str) -> dict[str, float]:
        if prompt == "bad":
            raise problem
        return {"overall": 1.0}

    with serving(FakeVerifier(scores)) as url:
        found = ask(url, request_of([PIXELS], ["bad"], "diagnose", False))
        assert f"{type(problem).__name__}: {problem}" in error_of(found, 500)
        assert ask(url, GOOD).is_success


def test_settings_that_json_cannot_hold_are_refused_at_the_start() -> None:
    verifier = FakeVerifier()
    verifier.settings = {"model": Path("doctor")}  # type: ignore[dict-item]
    with pytest.raises(InputError, match="settings must be values of JSON, those of FakeVerifier"):
        create_app(verifier)


def test_one_clients_picture_does_not_cost_another_its_answer() -> None:
    def scores(image: Image.Image, prompt: str) -> dict[str, float]:
        if prompt == "bad":
            raise ZeroDivisionError("by zero")
        return {"overall": float(np.asarray(image).mean())}

    gate = Gate(scores)
    with serving(gate) as url, ThreadPoolExecutor(4) as threads:
        first = threads.submit(ask, url, GOOD)
        assert gate.entered.wait(SECONDS)
        others = [
            threads.submit(ask, url, request_of([PIXELS], [p], "diagnose", False))
            for p in ("a cat", "bad", "a dog")
        ]
        with httpx.Client(verify=False) as client:
            wait_for(client, url, 4)
        gate.go_on.set()
        statuses = [future.result(SECONDS).status_code for future in (first, *others)]
        with httpx.Client(verify=False) as client:
            assert "tts_pictures_total 3.0" in client.get(f"{url}/metrics").text
    assert statuses == [200, 200, 500, 200]


class Gate(FakeVerifier):
    """Its first call waits, so that others gather into one batch."""

    def __init__(self, scores: Any) -> None:
        super().__init__(scores)
        self.entered, self.go_on = threading.Event(), threading.Event()

    def verify(
        self, images: Sequence[Any], prompts: Any, *, detail: Any = "diagnose"
    ) -> list[Verdict]:
        self.entered.set()
        assert self.go_on.wait(SECONDS)
        return super().verify(images, prompts, detail=detail)


def test_a_file_with_damage_is_one_clients_problem(url: str) -> None:
    file = io.BytesIO()
    noise(40, 40).save(file, "JPEG")
    for cut in (30, 300, len(file.getvalue()) - 40):
        body = pack({"prompts": ["x"]}, {"image.0": np.frombuffer(file.getvalue()[:cut], np.uint8)})
        assert "Image 0" in error_of(ask(url, body), 400)
