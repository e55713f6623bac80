"""HTTP to one server: tries again while it is away or full, and reports what went wrong."""

from __future__ import annotations

import os
import random
import ssl
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tts_verifier.errors import InputError, ServerError
from tts_verifier.interfaces.endpoints import MOST_SECONDS, ClientPool, bounded, without_key
from tts_verifier.verifiers.remote.protocol import MEDIA_TYPE, TOKEN_VARIABLE, load, token_of

if TYPE_CHECKING:
    import httpx

_LATER: Final = (408, 429, 502, 503, 504)
"""Statuses of a server that may answer the same request later."""
_REFUSED: Final = (400, 413, 415, 422)
"""Statuses of a request that is wrong."""
_PAUSES: Final = (0.1, 5.0)
"""Seconds before the second try, and between two tries at most; they double."""
_MOST_ANSWER: Final = 2**30
"""Bytes of an answer: some ten times what the maps of a request's pictures take."""


class Connection:
    """Asks a server. Safe to share between threads, and with processes that are forked.

    Args:
        url: such as "http://host:8000".
        timeout: seconds for a request, from its first byte to the answer's last.
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
        self._token = token or ""
        self._clients = ClientPool(partial(_client_of, self._token, min(timeout, MOST_SECONDS)))

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

    def _ask(self, method: str, path: str, body: bytes | None) -> httpx.Response:
        import httpx

        end, pause = time.monotonic() + self._patience, _PAUSES[0]
        while True:
            wait = pause * random.uniform(0.5, 1.5)
            try:
                with self._clients.client() as client:
                    headers = {} if body is None else {"content-type": MEDIA_TYPE}
                    answer: httpx.Response = client.request(
                        method, self.url + path, content=body, headers=headers
                    )
            except httpx.RequestError as error:
                problem = f"does not answer: {error or type(error).__name__}"
                if _is_of_tls(error):
                    raise ServerError(
                        f"The server at {self.url} {problem}. Its certificate must be known here, "
                        "and its url must begin with http:// where it has none."
                    ) from error
            else:
                if answer.status_code == 200:
                    return answer
                if answer.status_code not in _LATER:
                    raise self._refusal(answer)
                problem = f"answers {answer.status_code}: {self._told_reason(answer)}"
                asked = _seconds(answer.headers.get("retry-after"))
                problem += f", and wants {asked:g} s of patience" if asked > self._patience else ""
                wait = max(wait, asked)
            if time.monotonic() + wait > end:
                raise ServerError(
                    f"The server at {self.url} {problem.rstrip('.')}. It is asked for "
                    f"{self._patience:g} s at most. Start it (tts-serve), and run the same command "
                    "again.",
                    transient=True,
                )
            time.sleep(wait)
            pause = min(2 * pause, _PAUSES[1])

    def _refusal(self, answer: httpx.Response) -> Exception:
        status, reason = answer.status_code, self._told_reason(answer)
        if status == 401:
            return ServerError(
                f"The server at {self.url} wants a token: {reason} Set {TOKEN_VARIABLE} to the "
                "one that it was started with."
            )
        if status in _REFUSED and _told_error(answer):
            return InputError(reason)
        if status == 424:
            return ServerError(f"The verifier of the server at {self.url} cannot work: {reason}")
        if status == 500:
            return RuntimeError(f"The verifier of the server at {self.url} failed: {reason}")
        return ServerError(
            f"The server at {self.url} must be a tts-serve, it answers {status}: {reason}"
        )

    def _told_reason(self, answer: httpx.Response) -> str:
        """Returns the message of an error; the start of the answer if it is not of a tts-serve."""
        start = answer.content[:200].decode(errors="replace")
        # A proxy may repeat what it was sent.
        return without_key(_told_error(answer) or start or answer.reason_phrase, self._token)


def _told_error(answer: httpx.Response) -> str:
    """Returns what a tts-serve says is wrong; "" where another program has answered."""
    try:
        return str(load(answer.content)["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _client_of(token: str, seconds: float) -> Any:
    import httpx

    kind = bounded(httpx.Client, seconds=seconds, most=_MOST_ANSWER)
    return kind(
        timeout=httpx.Timeout(seconds, connect=min(seconds, 10.0)),
        headers={"accept": MEDIA_TYPE, **({"authorization": f"Bearer {token}"} if token else {})},
        # Proxies in environment variables are for the internet; reward servers are nearby.
        trust_env=False,
    )


def _is_of_tls(error: BaseException | None) -> bool:
    """Says whether TLS failed for good, and not because the server closed the connection."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return True
        error = error.__cause__ or error.__context__
    return False


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
