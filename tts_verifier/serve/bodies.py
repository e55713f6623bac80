"""Reads a request's bytes, within the limits of size, time and memory."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from starlette.requests import ClientDisconnect, Request

from tts_verifier.serve.limits import MemoryShare, Refused, RequestLimits

_DROP_SECONDS: Final = 5.0
"""Time to read what nobody wants."""


class Gone(Exception):
    """The client has closed its connection; nobody waits for an answer."""


def check_token(request: Request, token: str | None) -> None:
    """Raises Refused unless a request has the token, if there is one."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # In constant time, so that a token cannot be guessed letter by letter.
    same = hmac.compare_digest(given.strip().encode(), (token or "").encode())
    if token and not (same and scheme.lower() == "bearer"):
        raise Refused(401, "This server wants `Authorization: Bearer TOKEN` with its token.")


def check_kind(request: Request, kinds: Collection[str]) -> None:
    """Raises Refused unless a request's body is one of these media types, and not compressed."""
    given = media_type_of(request)
    if kinds and given not in kinds:
        raise Refused(
            415,
            f"A request's content-type must be {' or '.join(kinds)}, got {given!r:.80}. Pickles "
            "are never read.",
        )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise Refused(
            415,
            f"A request's body must not be compressed, its content-encoding is {encoding!r:.80}. "
            "Send it as it is; picture files are compressed already.",
        )


def media_type_of(request: Request) -> str:
    """Returns a request's content-type without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, limits: RequestLimits, share: MemoryShare) -> bytes:
    """Returns the body of a request.

    Args:
        request: its body was not read yet.
        limits: of size and time.
        share: takes the body's bytes as they come.

    Raises:
        Refused: it is too long or too slow, or there is no memory for it.
        Gone: the client went away.
    """
    said = request.headers.get("content-length")
    if said is not None:
        # The HTTP library has checked that it is a number.
        _check_body_size(int(said), limits)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                _check_body_size(size, limits)
                # Not what the header says: who sends nothing takes nothing.
                share.add(len(part))
                parts.append(part)
    except TimeoutError:
        raise Refused(
            408,
            f"A request must be sent within {limits.body_seconds:g} s; {size:,} bytes came. Send "
            "fewer pictures at a time, or start the server with a longer --body-seconds.",
        ) from None
    except ClientDisconnect:
        raise Gone from None
    return b"".join(parts)


async def drop_rest(request: Request, limits: RequestLimits) -> None:
    """Reads what is left of a refused request's body, for a while, and forgets it.

    A client that still sends would be cut off otherwise, and not see why it was refused.
    """
    dropped = 0
    # A RuntimeError: the part that was refused was the last one.
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(min(_DROP_SECONDS, limits.body_seconds)):
            async for part in request.stream():
                dropped += len(part)
                if dropped > limits.body:
                    return


def _check_body_size(size: int, limits: RequestLimits) -> None:
    if size > limits.body:
        raise Refused(
            413,
            f"A request may have {limits.body:,} bytes, this one has {size:,} or more. Send fewer "
            "pictures at a time, or start the server with a larger --max-body.",
        )


async def until_gone(request: Request) -> None:
    """Returns once the client has closed its connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
