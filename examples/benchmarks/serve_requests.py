"""The requests of `serve.py hostile`: good ones, and all that a server must survive."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tts_verifier import shapes
from tts_verifier.testing import FakeVerifier
from tts_verifier.verifiers.remote.protocol import MEDIA_TYPE, request_of

Made = tuple[bytes, list[dict[str, float]] | None]
"""The bytes of a request, and the scores that its answer must have; None = any answer."""
POOL: list[tuple[Image.Image, str, dict[str, float]]] = []
"""Pictures and prompts with the scores of the served verifier; empty = it is the fake one."""
UNREAD = 20
"""Requests of a connection that reads no answers: more than sockets hold."""


def caption_pictures(count: int) -> tuple[list[Image.Image], list[str]]:
    """Returns pictures and captions; half of the pictures are of another caption."""
    captions = shapes.captions(count, seed=0)
    shown = [captions[i if i % 2 else i - 1] for i in range(count)]
    return [shapes.render(caption, seed=i) for i, caption in enumerate(shown)], captions


def http(body: bytes, kind: str = MEDIA_TYPE, path: str = "/v1/score", length: int = -1) -> bytes:
    """Returns a request."""
    length = len(body) if length < 0 else length
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\n"
        f"content-length: {length}\r\n\r\n"
    ).encode() + body


def good(rng: random.Random) -> Made:
    """Pictures, and the scores that they must get."""
    if POOL:
        images, prompts, expected = map(
            list, zip(*rng.sample(POOL, rng.randint(1, 4)), strict=True)
        )
        return _good(images, prompts, expected)
    images = [
        Image.new("RGB", (rng.randint(1, 40), rng.randint(1, 40)), tuple(rng.randbytes(3)))
        for _ in range(rng.randint(1, 4))
    ]
    prompts = [f"picture {rng.random()}"] * len(images)
    expected = [dict(v.scores) for v in FakeVerifier().verify(images, prompts)]
    return _good(images, prompts, expected)


def _good(images: list[Any], prompts: list[Any], expected: list[Any]) -> Made:
    pixels = [np.asarray(image) for image in images]
    return http(request_of(pixels, prompts, "diagnose", True)), expected


def body_of(rng: random.Random) -> bytes:
    """Returns the body of a good request."""
    return good(rng)[0].partition(b"\r\n\r\n")[2]


def changed(rng: random.Random) -> Made:
    """A good request with a few other bytes."""
    body = bytearray(body_of(rng))
    for _ in range(rng.randint(1, 20)):
        body[rng.randrange(min(len(body), rng.choice((8, 400, len(body)))))] = rng.randrange(256)
    return http(bytes(body)), None


def cut(rng: random.Random) -> Made:
    """A good request without its end, that says so."""
    body = body_of(rng)
    return http(body[: rng.randrange(len(body))]), None


def json_of(rng: random.Random) -> Made:
    """JSON of another shape, or none."""
    values: list[Any] = [None, 3, "x", [], {}, [None], ["x"] * 9, -1, 1e308, "\x00", [[1]] * 3]
    names = ("prompts", "images", "detail", "maps", "protocol", "prompt", "image", "messages")
    made: Any = {name: rng.choice(values) for name in rng.sample(names, rng.randint(0, 5))}
    texts = [json.dumps(made), "[" * rng.randint(1, 10**5), '{"prompts":' * 1000, "NaN", '"']
    path = rng.choice(("/v1/score", "/compute", "/v1/chat/completions"))
    return http(rng.choice(texts).encode(), "application/json", path), None


def pickled(rng: random.Random) -> Made:
    """What the pickled protocols send."""
    body = pickle.dumps({"images": [rng.randbytes(99)], "prompts": ["x"], "metadata": {}})
    return http(body, rng.choice((MEDIA_TYPE, "application/octet-stream", "text/plain"))), None


def bomb(rng: random.Random) -> Made:
    """A small file of a large picture, or the header of a huge one."""
    import base64
    import io
    import struct
    import zlib

    file = io.BytesIO()
    Image.new("1", (rng.choice((300, 3000)), 3000)).save(file, "PNG")
    data = file.getvalue()
    if rng.random() < 0.5:
        head = data[:16] + struct.pack(">II", 10**5, 10**6) + data[24:29]
        data = head + struct.pack(">I", zlib.crc32(head[12:])) + data[33:]
    body = {"prompts": ["x"], "images": [base64.b64encode(data).decode()]}
    return http(json.dumps(body).encode(), "application/json"), None


def unread(rng: random.Random) -> Made:
    """Requests for large maps, one behind the other on a connection."""
    pixels = [np.zeros((8, 8, 3), np.uint8)]
    one = http(request_of(pixels, ["x"], "diagnose", [rng.randint(200, 256), 256]))
    return one.replace(b"connection: close\r\n", b"") * UNREAD, None


def odd_header(rng: random.Random) -> Made:
    """A good request with another header, or with one more."""
    head, _, body = good(rng)[0].partition(b"\r\n\r\n")
    more = (
        b"content-type: application/json", b"transfer-encoding: chunked", b"expect: 100-continue",
        b"content-encoding: gzip", b"accept: \xff;q=,", b"authorization: Bearer \xe9",
        b"upgrade: websocket", b"connection: upgrade, keep-alive", b"range: bytes=5-1", b": x",
        b"content-length: 7", b"x: " + b"y" * rng.randint(1, 90_000), b"a: b\r\n c", b"a: \x00",
    )  # fmt: skip
    return head + b"\r\n" + rng.choice(more) + b"\r\n\r\n" + body, None


KINDS: dict[str, Callable[[random.Random], Made]] = {
    "good": good,
    "changed": changed,
    "cut": cut,
    "random": lambda rng: (http(rng.randbytes(rng.randint(0, 3000))), None),
    "no http": lambda rng: (rng.randbytes(rng.randint(1, 300)) + b"\r\n\r\n", None),
    "json": json_of,
    "pickle": pickled,
    "bomb": bomb,
    "oversized": lambda rng: (http(bytes(1 << 20) + b"x"), None),
    "length lies": lambda rng: (http(body_of(rng), length=rng.choice((0, 3, 10**18))), None),
    "slow header": lambda rng: (http(b"")[: rng.randint(4, 60)], None),
    "slow body": lambda rng: (http(body_of(rng)), None),
    "odd header": odd_header,
    "unread": unread,
    "gone": lambda rng: (http(body_of(rng))[: rng.randint(10, 600)], None),
    "no endpoint": lambda rng: (http(b"x", path="/" + "a" * rng.randint(0, 9000)), None),
}
