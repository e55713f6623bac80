"""HTTP to one server: it asks again while the server is gone or full, and says what went wrong."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, Any, Final

from tts_verifier.errors import InputError, ServerError
from tts_verifier.verifiers.remote.protocol import MEDIA_TYPE, TOKEN_VARIABLE, token_of

if TYPE_CHECKING:
    import httpx

_LATER: Final = (429, 502, 503, 504)
"""Statuses of a server that may answer the same request later."""
_REFUSED: Final = (400, 413, 415, 422)
"""Statuses of a request that is wrong."""
_MOST_SECONDS: Final = 10**7
"""That a socket can be told to wait."""
_PAUSES: Final = (0.1, 5.0)
"""Seconds before the second try, and between two tries at most; they double."""


class Connection:
    """Asks a server. Safe to share between threads.

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
            import httpx
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
        headers = {"accept": MEDIA_TYPE} | ({"authorization": f"Bearer {token}"} if token else {})
        # Proxies of the environment are for the internet; servers of rewards are near.
        timeout = min(timeout, _MOST_SECONDS)
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            headers=headers,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )
        # Answers that cannot be decoded are among them.
        self._unreachable = (httpx.RequestError,)

    def close(self) -> None:
        """Closes the sockets."""
        self._client.close()

    def get(self, path: str) -> Any:
        """Returns the JSON at a path."""
        response = self._ask("GET", path, None)
        try:
            found = response.json()
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

    def _ask(self, method: str, path: str, body: bytes | None) -> httpx.Response:
        end, pause = time.monotonic() + self._patience, _PAUSES[0]
        headers = {} if body is None else {"content-type": MEDIA_TYPE}
        while True:
            wait = pause * random.uniform(0.5, 1.5)
            try:
                response = self._client.request(
                    method, self.url + path, content=body, headers=headers
                )
            except self._unreachable as error:
                problem = f"does not answer: {error or type(error).__name__}"
            else:
                if response.status_code == 200:
                    return response
                if response.status_code not in _LATER:
                    raise self._refusal(response)
                problem = f"answers {response.status_code}: {_told_reason(response)}"
                wait = max(wait, _seconds(response.headers.get("retry-after")))
            if time.monotonic() + wait > end:
                raise ServerError(
                    f"The server at {self.url} {problem}. It was asked for {self._patience:g} s. "
                    "Start it (tts-serve), and run the same command again."
                )
            time.sleep(wait)
            pause = min(2 * pause, _PAUSES[1])

    def _refusal(self, response: httpx.Response) -> Exception:
        status, reason = response.status_code, _told_reason(response)
        if status == 401:
            return ServerError(
                f"The server at {self.url} wants a token: {reason} Set {TOKEN_VARIABLE} to the "
                "one that it was started with."
            )
        if status in _REFUSED:
            return InputError(reason)
        if status == 500:
            return RuntimeError(f"The verifier of the server at {self.url} failed: {reason}")
        return ServerError(
            f"The server at {self.url} must be a tts-serve, it answers {status}: {reason}"
        )


def _told_reason(response: httpx.Response) -> str:
    """Returns what an error says; the start of the answer where it is none of ours."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return response.text[:200] or response.reason_phrase


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
