"""Address and key of a chat endpoint. Addresses are logged and errors shown: neither has a key."""

from __future__ import annotations

import os
import re
from typing import Final
from urllib.parse import urlsplit

from tts_verifier.errors import InputError

OPENAI_URL: Final = "https://api.openai.com/v1"
"""The address if no other is given. The client itself would take an empty variable as address."""
_URL_VARIABLE: Final = "OPENAI_BASE_URL"
_SHORTEST_KEY: Final = 8
"""Letters of a key that is looked for in texts; a shorter one is a placeholder such as "none"."""


def endpoint_url(base_url: str | None) -> str | None:
    """Returns the address of an endpoint; None = that of OpenAI.

    Args:
        base_url: such as "http://localhost:8000/v1"; None = that of OPENAI_BASE_URL.

    Raises:
        InputError: it is no such address, or it has a user, a password or a query in it.
    """
    url = base_url if base_url is not None else os.environ.get(_URL_VARIABLE) or None
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        secret = "@" in parts.netloc or bool(parts.query or parts.fragment)
    except (ValueError, TypeError, AttributeError):
        usable = secret = False
    if not usable or secret or not url.isprintable() or " " in url:
        # Without the value, in which there may be a password.
        fault = "it has a user, a query or a fragment" if secret else "it has another form"
        raise InputError(
            "base_url must be an address such as http://localhost:8000/v1, without a user, a "
            f"password or a query, since it is logged; {fault}. A key belongs into an "
            "environment variable.",
            argument="base_url",
        )
    return url


def endpoint_key(variable: str) -> str:
    """Returns the key in an environment variable, without white space around it; "" = none.

    Raises:
        InputError: `variable` is not the name of a variable, or no header can hold the key.
    """
    if not isinstance(variable, str) or not re.fullmatch(r"[A-Za-z_]\w*", variable, re.ASCII):
        # Without the value, which may be the key itself.
        raise InputError(
            "api_key_env must be the name of an environment variable, such as OPENAI_API_KEY, "
            "and is not. The key itself stays in the variable.",
            argument="api_key_env",
        )
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(
            f"The key in the environment variable {variable} must be printable ASCII without "
            "spaces; this one is not. Set it again.",
            argument="api_key_env",
        )
    return key


def without_key(text: str, key: str) -> str:
    """Returns a text in which stars stand for a key: an endpoint may repeat it in an error.

    So they do for the beginning of a key at the end of a text, which may have been cut off there.
    """
    if len(key) < _SHORTEST_KEY:
        return text
    text = text.replace(key, "***")
    begins = (key[:length] for length in range(len(key) - 1, _SHORTEST_KEY // 2 - 1, -1))
    found = next((begin for begin in begins if text.endswith(begin)), "")
    return text.removesuffix(found) + "***" if found else text
