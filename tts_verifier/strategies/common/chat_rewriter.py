"""Rewrites prompts with a language model behind an OpenAI-compatible endpoint, remote or local."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tts_verifier.errors import InputError
from tts_verifier.interfaces import (
    OPENAI_URL,
    RewriteRequest,
    endpoint_key,
    endpoint_url,
    without_key,
)
from tts_verifier.strategies.common.arguments import check_number
from tts_verifier.types import Setting

_INSTRUCTION: Final = (
    "You rewrite prompts for a text-to-image model. You get the user's prompt, the prompt that an "
    "image was made from, and what a verifier found in that image. Write one prompt that asks for "
    "exactly what the user wants and states more clearly what went wrong. Answer with the prompt "
    "alone, without quotation marks, in at most 60 words."
)
_LONGEST_REPLY: Final = 4000
"""Characters of a verdict that the model reads."""
_KEY_VARIABLE: Final = "OPENAI_API_KEY"


class ChatRewriter:
    """Asks a chat model for a better prompt.

    Safe to share between threads: the client is.

    Args:
        model: the model's name at the endpoint.
        base_url: of the endpoint, such as "http://localhost:8000/v1"; None = OpenAI's, or that of
            the variable OPENAI_BASE_URL. The key is that of OPENAI_API_KEY, which may be unset
            where `base_url` is given.
        temperature: 0 = the likeliest text; None = the endpoint's own, for models that refuse any.
        client: replaces the client of the `openai` package; for tests.

    Raises:
        InputError: the package `openai` is missing, no key is set, or an argument is not usable.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        temperature: float | None = 0.0,
        client: Any = None,
    ) -> None:
        if not isinstance(model, str) or not model:
            raise InputError(
                f"model must be a name that the endpoint knows, got {model!r}.", argument="model"
            )
        if temperature is not None:
            check_number(
                "temperature", temperature, lambda t: 0 <= t < math.inf, rule="finite, not negative"
            )
        url = endpoint_url(base_url)
        self.settings: Mapping[str, Setting] = {
            "rewriter": "chat",
            "model": model,
            "base_url": url,
            "temperature": temperature,
        }
        self._key = endpoint_key(_KEY_VARIABLE)
        self._client = client or _open_client(url, self._key)

    def rewrite(self, requests: Sequence[RewriteRequest]) -> list[str]:
        """Returns the model's text for each request, "" where it gives none.

        Raises:
            RuntimeError: the endpoint fails, or its answer has no text; the run then takes the
                prompt.
        """
        try:
            return [self._ask(request) for request in requests]
        except Exception as error:  # an endpoint may answer anything
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise RuntimeError(without_key(why, self._key)) from None

    def _ask(self, request: RewriteRequest) -> str:
        temperature = self.settings["temperature"]
        reply = self._client.chat.completions.create(
            model=self.settings["model"],
            **({} if temperature is None else {"temperature": temperature}),
            messages=[
                {"role": "system", "content": _INSTRUCTION},
                {"role": "user", "content": description(request)},
            ],
        )
        choice = reply.choices[0]
        text = choice.message.content or ""
        if getattr(choice, "finish_reason", None) == "length":
            raise ValueError(f"the text was cut off, it ends in {str(text)[-40:]!r}")
        if not isinstance(text, str):
            raise TypeError(f"the answer must be a text, it is a {type(text).__name__}")
        # Models that think aloud close their thoughts so.
        return text.rpartition("</think>")[2].strip().strip('"').strip()


def description(request: RewriteRequest) -> str:
    """Returns what the model is told: prompts, scores, regions and the verifier's reply."""
    lines = [f"User's prompt: {request.prompt}", f"Image made from: {request.asked}"]
    verdict = request.trial.verdict
    if verdict is not None:
        scores = ", ".join(f"{name} {value:.2f}" for name, value in verdict.scores.items())
        boxes = "; ".join(",".join(f"{edge:.0f}" for edge in box) for box in verdict.boxes)
        size = "x".join(map(str, request.trial.size or ()))
        lines.append(f"Scores, higher is better: {scores}")
        if boxes:
            lines.append(f"Flawed regions (x1,y1,x2,y2 in a picture of {size}): {boxes}")
        lines.append(f"The verifier's words: {verdict.text[:_LONGEST_REPLY]}")
    return "\n".join(lines)


def _open_client(base_url: str | None, key: str) -> Any:
    try:
        import openai
    except ImportError as error:
        raise InputError(
            'A chat rewriter needs the package openai: pip install "tts-verifier[api]".'
        ) from error
    try:
        # Endpoints of one's own need no key, and the client needs one.
        return openai.OpenAI(
            api_key=key or (None if base_url is None else "none"),
            base_url=base_url or OPENAI_URL,
        )
    except openai.OpenAIError as error:
        raise InputError(f"The endpoint cannot be used: {error}", argument="base_url") from error
