"""Rewrites prompts with a language model behind an OpenAI-compatible endpoint, remote or local."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from tts_verifier.errors import InputError
from tts_verifier.interfaces import RewriteRequest
from tts_verifier.interfaces.endpoints import ChatEndpoint
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
_REPLY_SECONDS: Final = 600.0
"""Models that think first take minutes."""


class ChatRewriter:
    """Asks a chat model for a better prompt.

    Safe to share between threads, and with processes that are forked.

    Args:
        model: the model's name at the endpoint.
        base_url: of the endpoint, such as "http://localhost:8000/v1"; None = OpenAI's, or that of
            the variable OPENAI_BASE_URL. The key is that of OPENAI_API_KEY, which may be unset
            where `base_url` is given.
        temperature: 0 = the likeliest text; None = the endpoint's own. An endpoint that refuses any
            is asked without one.

    Raises:
        InputError: the package `openai` is missing, no key is set, or an argument is not usable.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        temperature: float | None = 0.0,
    ) -> None:
        if not isinstance(model, str) or not model:
            raise InputError(
                f"model must be a name that the endpoint knows, got {model!r}.", argument="model"
            )
        if temperature is not None:
            check_number(
                "temperature", temperature, lambda t: 0 <= t < math.inf, rule="finite, not negative"
            )
        self._endpoint = ChatEndpoint(base_url, timeout=_REPLY_SECONDS)
        self.settings: Mapping[str, Setting] = {
            "rewriter": "chat",
            "model": model,
            "base_url": self._endpoint.url,
            "temperature": temperature,
        }

    def rewrite(self, requests: Sequence[RewriteRequest]) -> list[str]:
        """Returns the model's text for each request.

        Raises:
            RuntimeError: the endpoint fails, or its answer has no text; the run then takes the
                prompt.
            ServerError: the endpoint refuses the key, does not know the model, wants money, or
                sends requests elsewhere.
        """
        return [self._ask(request) for request in requests]

    def _ask(self, request: RewriteRequest) -> str:
        temperature = self.settings["temperature"]
        reply = self._endpoint.ask(
            {
                "model": self.settings["model"],
                **({} if temperature is None else {"temperature": temperature}),
                "messages": [
                    {"role": "system", "content": _INSTRUCTION},
                    {"role": "user", "content": description(request)},
                ],
            }
        )
        if reply.problem:
            raise RuntimeError(reply.problem)
        # Models that think aloud close their thoughts so.
        return reply.text.rpartition("</think>")[2].strip().strip('"').strip()


def description(request: RewriteRequest) -> str:
    """Returns the text for the model: prompts, scores, regions and the verifier's reply."""
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
