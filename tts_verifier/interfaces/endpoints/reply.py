"""The answer of a chat endpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

_MOST_TOKENS: Final = 2**53
"""Larger numbers cannot be counts of tokens; floats do not even hold all of them."""


class ChatReply(NamedTuple):
    """A reply and what it cost."""

    text: str
    """The message's content."""
    problem: str = ""
    """Why the content holds no scores, if the endpoint says so."""
    tokens: Sequence[tuple[str, Mapping[str, float]]] = ()
    """The text of each token, and its most probable alternatives with their probabilities; empty
    if the endpoint gives no log-probabilities."""
    input_tokens: float = math.nan
    """Tokens of the request; NaN = not stated."""
    output_tokens: float = math.nan
    """Tokens of the reply."""


def reply_of(completion: Any) -> ChatReply:
    """Reads a chat completion; if it is malformed, the reply has a `problem`."""
    try:
        choice = completion.choices[0]
        message = choice.message
        text = message.content
        usage = getattr(completion, "usage", None)
        costs = [
            _token_count(getattr(usage, f"{k}_tokens", None)) for k in ("prompt", "completion")
        ]
        problem = ""
        if getattr(message, "refusal", None):
            problem = f"the model refuses: {message.refusal!s:.200}"
        elif choice.finish_reason == "content_filter":
            problem = "the endpoint's filter refuses the request"
        elif choice.finish_reason == "length":
            problem = "the reply was cut off by max_tokens"
        elif text is not None and not isinstance(text, str):
            problem = f"the reply must be a text, it is a {type(text).__name__}"
        elif text is None or not text.strip():
            problem = "the reply is empty"
    except (AttributeError, LookupError, TypeError, ValueError):
        return ChatReply("", f"the endpoint's answer is no chat completion: {completion!r:.100}")
    return ChatReply(text if isinstance(text, str) else "", problem, _tokens(choice), *costs)


def _token_count(tokens: Any) -> float:
    """Returns a number of tokens; NaN if the endpoint gives none, or something else."""
    whole = isinstance(tokens, int) and not isinstance(tokens, bool)
    return float(tokens) if whole and 0 <= tokens < _MOST_TOKENS else math.nan


def _tokens(choice: Any) -> list[tuple[str, Mapping[str, float]]]:
    """Returns the tokens with their alternatives; none if these are malformed."""
    content = getattr(getattr(choice, "logprobs", None), "content", None) or []
    try:
        return [
            (
                token.token + "",
                {top.token + "": math.exp(min(top.logprob, 0)) for top in token.top_logprobs or ()},
            )
            for token in content
        ]
    except (AttributeError, TypeError, ValueError):
        return []
