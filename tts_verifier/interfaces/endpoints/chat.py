"""A chat endpoint over HTTP: tries again, limits the rate, leaves out what it refuses."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Mapping
from functools import partial
from threading import Lock
from typing import Any, Final
from urllib.parse import urlsplit

from tts_verifier.errors import InputError, RunWarning, ServerError
from tts_verifier.interfaces.endpoints.address import (
    OPENAI_URL,
    endpoint_key,
    endpoint_url,
    without_key,
)
from tts_verifier.interfaces.endpoints.clients import MOST_SECONDS, ClientPool, bounded
from tts_verifier.interfaces.endpoints.reply import ChatReply, reply_of

_OPTIONAL: Final = ("response_format", "max_completion_tokens", "temperature", "logprobs")
"""Parameters that an endpoint may refuse by name; requests then go on without them."""
_OF_ALL: Final = (401, 402, 403, 404)
"""Statuses that concern the key, the account or the model."""
_MOST_ANSWER_BYTES: Final = 2**24
"""Far more than a reply takes with the log-probabilities of its tokens."""
_FILTERED: Final = re.compile("moderation|flagged", re.IGNORECASE)


class ChatEndpoint:
    """Sends chat requests to an OpenAI-compatible endpoint.

    Safe to share between threads, and with processes that are forked.

    Args:
        base_url: such as "http://localhost:8000/v1"; None = OPENAI_BASE_URL, or else OpenAI's.
        api_key_env: the environment variable that holds the key; it may be unset if there is a
            `base_url`.
        timeout: seconds for a request, from its first byte to the answer's last.
        retries: further tries after a timeout, a broken connection, or the status 408, 409, 429 or
            5xx. The pauses between them grow, or are those that the endpoint asks for.
        requests_per_minute: the most requests; retries are not counted. None = no limit.

    Raises:
        InputError: an argument or a proxy of the environment is not usable, the key is missing, or
            the extra `api` is.
    """

    def __init__(
        self,
        base_url: str | None,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        retries: int = 4,
        requests_per_minute: float | None = None,
    ) -> None:
        check_above_zero("timeout", timeout)
        if requests_per_minute is not None:
            check_above_zero("requests_per_minute", requests_per_minute)
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise InputError(f"retries must be 0 or more, got {retries!r}.", argument="retries")
        self.url = endpoint_url(base_url)
        """The address; None = OpenAI's."""
        self._key = endpoint_key(api_key_env)
        if not self._key and self.url is None:
            raise InputError(
                f"A chat endpoint needs a key in the environment variable {api_key_env}, or a "
                "base_url where none is needed.",
                argument="api_key_env",
            )
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise InputError(
                "A chat endpoint needs the package openai. Install it: pip install "
                "'tts-verifier[api]'."
            ) from error
        seconds = min(timeout, MOST_SECONDS)
        self._clients = ClientPool(partial(_client, self.url, self._key, seconds, retries))
        try:
            # Before a run draws images that nobody could judge.
            with self._clients.client():
                pass
        except Exception as error:
            # Without the text, which may hold a proxy's password.
            raise InputError(
                "The environment must name proxies and certificates that httpx can use; it raises "
                f"{type(error).__name__}. Check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE "
                "and SSL_CERT_DIR."
            ) from error
        self._tries = retries + 1
        self._lock = Lock()
        self._pause = 0.0 if requests_per_minute is None else 60 / requests_per_minute
        self._next = 0.0
        self._refused: set[str] = set()

    def ask(self, request: dict[str, Any]) -> ChatReply:
        """Sends a request, without the parameters that the endpoint has refused before.

        Args:
            request: the arguments of `chat.completions.create`.

        Returns:
            The reply; if there is none, its `problem` says why.

        Raises:
            ServerError: the endpoint refuses the key, does not know the model, wants money, or
                redirects requests. It would not answer any other request either.
        """
        reply = self._reply(request)
        return reply._replace(
            text=without_key(reply.text, self._key), problem=without_key(reply.problem, self._key)
        )

    def _reply(self, request: dict[str, Any]) -> ChatReply:
        import openai

        while True:
            self._wait()
            sent = self._without_refused(request)
            try:
                with self._clients.client() as client:
                    return reply_of(client.chat.completions.create(**sent))
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if not self._learn(str(error), sent):
                    return ChatReply("", f"the endpoint refuses the request: {_one_line(error)}")
            except ServerError as error:
                # This answer is too long or compressed.
                return ChatReply("", str(error))
            except openai.APITimeoutError:
                return ChatReply("", f"no answer in time (tries: {self._tries})")
            # The answer may be no JSON, or nested too deeply.
            except (openai.OpenAIError, ValueError, RecursionError) as error:
                if elsewhere := _redirected_to(error):
                    raise ServerError(
                        f"An endpoint must answer at its base_url, {self.url or OPENAI_URL}; it "
                        f"sends requests to {elsewhere}. Give the address that answers."
                    ) from None
                if _refuses_all(error):
                    said = without_key(_one_line(error), self._key)
                    raise ServerError(
                        "The endpoint must accept the key, know the model "
                        f"{request.get('model')!r:.100} and have credit for it; it says: {said}"
                    ) from None
                again = (
                    openai.APIConnectionError,
                    openai.RateLimitError,
                    openai.InternalServerError,
                )
                tries = f" (tries: {self._tries})" if isinstance(error, again) else ""
                why = _one_line(error.__cause__ or error)
                return ChatReply("", f"{type(error).__name__}{tries}: {why}")

    def _without_refused(self, request: dict[str, Any]) -> dict[str, Any]:
        sent = {name: value for name, value in request.items() if name not in self._refused}
        # Older servers know the limit under its older name.
        if "max_completion_tokens" in self._refused:
            sent["max_tokens"] = request["max_completion_tokens"]
        return sent

    def _learn(self, message: str, sent: Mapping[str, Any]) -> bool:
        """Notes the parameters that an error names; returns whether there is a new one."""
        named = {name for name in _OPTIONAL if name in sent and name in message}
        if not named and "json_schema" in message and "response_format" in sent:
            named = {"response_format"}
        if "logprobs" in named:
            named.add("top_logprobs")
        if not named:
            return False
        with self._lock:
            new = named - self._refused
            self._refused |= named
        if new:
            warnings.warn(
                f"The endpoint refuses {', '.join(sorted(new))}; requests go on without.",
                RunWarning,
                stacklevel=2,
            )
        return True

    def _wait(self) -> None:
        """Waits for this request's turn, if their rate is limited."""
        with self._lock:
            now = time.monotonic()
            turn = max(self._next, now)
            self._next = turn + self._pause
        time.sleep(max(turn - now, 0.0))


def check_above_zero(name: str, number: float, *, whole: bool = False) -> None:
    """Raises InputError unless an argument is a finite number above 0, or a whole one."""
    kinds = int if whole else (int, float)
    if isinstance(number, bool) or not isinstance(number, kinds) or not 0 < number < math.inf:
        what = "a whole number" if whole else "a number"
        raise InputError(f"{name} must be {what} above 0, got {number!r}.", argument=name)


def _client(base_url: str | None, key: str, timeout: float, retries: int) -> Any:
    import openai

    kind = bounded(openai.DefaultHttpxClient, seconds=timeout, most=_MOST_ANSWER_BYTES)
    return openai.OpenAI(
        # The client requires a key, even if the endpoint needs none.
        api_key=key or "none",
        base_url=base_url or OPENAI_URL,
        timeout=timeout,
        max_retries=retries,
        # Pictures and prompts are sent to the given address only.
        http_client=kind(follow_redirects=False),
    )


def _refuses_all(error: Exception) -> bool:
    """Returns whether an endpoint refuses every request with this key or model."""
    status = getattr(error, "status_code", None)
    # Some vendors answer 403 where a filter stops one picture.
    if status == 403 and _FILTERED.search(str(error)):
        return False
    return status in _OF_ALL or getattr(error, "code", None) == "insufficient_quota"


def _redirected_to(error: Exception) -> str:
    """Returns the host to which an endpoint redirects a request, "" = it does not."""
    response = getattr(error, "response", None)
    if response is None or not response.is_redirect:
        return ""
    try:
        # The rest of an address may be a secret.
        host = urlsplit(response.headers.get("location", "")).hostname
    except ValueError:
        host = None
    return host or "another address"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
