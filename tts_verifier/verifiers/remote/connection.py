"""HTTP to one server: it asks again while the server is gone or full, and says what went wrong."""

from __future__ import annotations

import os
import random
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tts_verifier.errors import InputError, ServerError
from tts_verifier.verifiers.remote.protocol import MEDIA_TYPE, TOKEN_VARIABLE, load, token_of

if TYPE_CHECKING:
    import httpx

_LATER: Final = (408, 429, 502, 503, 504)
"""Statuses of a server that may answer the same request later."""
_REFUSED: Final = (400, 413, 415, 422)
"""Statuses of a request that is wrong."""
_MOST_SECONDS: Final = 10**7
"""That a socket can be told to wait."""
_PAUSES: Final = (0.1, 5.0)
"""Seconds before the second try, and between two tries at most; they double."""
_MOST_ANSWER: Final = 2**30
"""Bytes of an answer: some ten times what the maps of a request's pictures take."""


class _Answer(NamedTuple):
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    phrase: str


class Connection:
    """Asks a server. Safe to share between threads, and with processes that are forked.

    Args:
        url: such as "http://host:8000".
        timeout: seconds that an answer may take.
        patience: seconds for which a request is tried again.
        token: None = that of the environment.

    Raises:
        InputError: httpx is missing, or the URL, the token or a number cannot be used.
    """

    def __init__(
        self, url: str, *, timeout: float, patience: float, token: str | None = None
    ) -> None:
        try:
            import httpx  # noqa: F401
        except ImportError as error:
            raise InputError(
                'A remote verifier needs httpx. Install it with pip install "tts-verifier[serve]".'
            ) from error
        for name, value in (("timeout", timeout), ("patience", patience)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise InputError(f"{name} must be seconds, got {value!r}.", argument=name)
        if not timeout:
            raise InputError("timeout must be seconds above 0, got 0.", argument="timeout")
        _check_url(url)
        if token is not None and not isinstance(token, str):
            raise InputError(
                f"token must be a text, got a {type(token).__name__}.", argument="token"
            )
        self.url, self._patience = url.rstrip("/"), patience
        token = token_of(os.environ.get(TOKEN_VARIABLE) if token is None else token)
        self._headers = {"accept": MEDIA_TYPE, "accept-encoding": "identity"}
        self._headers |= {"authorization": f"Bearer {token}"} if token else {}
        self._timeout = min(timeout, _MOST_SECONDS)
        self._client: httpx.Client | None = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        # Another process has sockets of its own.
        return self.__dict__ | {"_client": None}

    def _sockets(self) -> httpx.Client:
        """Returns the connections of this process.

        Those that a fork has copied would give this process answers to the other one's requests.
        """
        import httpx

        if self._client is None or self._process != os.getpid():
            client = httpx.Client(
                timeout=httpx.Timeout(self._timeout, connect=min(self._timeout, 10.0)),
                headers=self._headers,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
                # Proxies of the environment are for the internet; servers of rewards are near.
                trust_env=False,
            )
            # Its sockets would stay open until Python ends.
            weakref.finalize(self, client.close)
            self._client, self._process = client, os.getpid()
        return self._client

    def get(self, path: str) -> Any:
        """Returns the JSON at a path."""
        answer = self._ask("GET", path, None)
        try:
            found = load(answer.content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ServerError(
                f"The server at {self.url} must be a tts-serve: its {path} is no object of JSON."
            )
        return found

    def post(self, path: str, body: bytes) -> bytes:
        """Sends a body of safetensors, and returns the answer's.

        Raises:
            InputError: the server refuses the request as wrong.
            ServerError: it does not answer in time, or refuses for another reason.
            RuntimeError: the server's verifier failed.
        """
        return self._ask("POST", path, body).content

    def _ask(self, method: str, path: str, body: bytes | None) -> _Answer:
        import httpx

        end, pause = time.monotonic() + self._patience, _PAUSES[0]
        while True:
            wait = pause * random.uniform(0.5, 1.5)
            try:
                answer = self._ask_once(method, path, body)
            # Answers that cannot be decoded are among them.
            except httpx.RequestError as error:
                problem = f"does not answer: {error or type(error).__name__}"
            else:
                if answer.status == 200:
                    return answer
                if answer.status not in _LATER:
                    raise self._refusal(answer)
                problem = f"answers {answer.status}: {_told_reason(answer)}"
                wait = max(wait, _seconds(answer.headers.get("retry-after")))
            if time.monotonic() + wait > end:
                raise ServerError(
                    f"The server at {self.url} {problem}. It was asked for {self._patience:g} s. "
                    "Start it (tts-serve), and run the same command again.",
                    transient=True,
                )
            time.sleep(wait)
            pause = min(2 * pause, _PAUSES[1])

    def _ask_once(self, method: str, path: str, body: bytes | None) -> _Answer:
        import httpx

        end = time.monotonic() + self._timeout
        headers = {} if body is None else {"content-type": MEDIA_TYPE}
        parts: list[bytes] = []
        size = 0
        with self._sockets().stream(
            method, self.url + path, content=body, headers=headers
        ) as response:
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > _MOST_ANSWER:
                    raise ServerError(
                        f"An answer may have {_MOST_ANSWER:,} bytes, that of the server at "
                        f"{self.url} has more. It must be a tts-serve."
                    )
                # httpx counts from the last byte that came, so a slow answer might take for ever.
                if time.monotonic() > end:
                    raise httpx.ReadTimeout(f"the answer took more than {self._timeout:g} s")
            return _Answer(
                response.status_code, response.headers, b"".join(parts), response.reason_phrase
            )

    def _refusal(self, answer: _Answer) -> Exception:
        status, reason = answer.status, _told_reason(answer)
        if status == 401:
            return ServerError(
                f"The server at {self.url} wants a token: {reason} Set {TOKEN_VARIABLE} to the "
                "one that it was started with."
            )
        if status in _REFUSED:
            return InputError(reason)
        if status == 424:
            return ServerError(f"The verifier of the server at {self.url} cannot work: {reason}")
        if status == 500:
            return RuntimeError(f"The verifier of the server at {self.url} failed: {reason}")
        return ServerError(
            f"The server at {self.url} must be a tts-serve, it answers {status}: {reason}"
        )


def _told_reason(answer: _Answer) -> str:
    """Returns what an error says; the start of the answer where it is none of ours."""
    try:
        return str(load(answer.content)["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return answer.content[:200].decode(errors="replace") or answer.phrase


def _seconds(header: str | None) -> float:
    """Returns the seconds of a `Retry-After`; 0 where there are none."""
    return float(header) if header is not None and header.isdecimal() else 0.0


def _check_url(url: str) -> None:
    import httpx

    try:
        read = httpx.URL(url)
        usable = read.scheme in ("http", "https") and bool(read.host.encode("idna"))
        usable = usable and 0 < (read.port or 80) < 2**16 and not (read.query or read.fragment)
    # idna: a host whose parts are too long, which a socket would refuse in its own words.
    except (httpx.InvalidURL, TypeError, ValueError):
        usable = False
    if not usable:
        raise InputError(
            "A server's url must begin with http:// or https://, with a host and no query, got "
            f'{url!r:.200}. Write "http://host:8000".',
            argument="url",
        )
