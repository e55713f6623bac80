"""The command's options -> limits, and arguments of the verifier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from tts_verifier.errors import InputError
from tts_verifier.serve.limits import MIB, RequestLimits


def limits_of(options: Mapping[str, Any]) -> RequestLimits:
    """Returns the limits that options such as `max_images` set; None = the default."""
    values = {
        name.removeprefix("max_"): value * MIB if name in ("max_body", "max_memory") else value
        for name, value in options.items()
        if value is not None
    }
    return RequestLimits(**values)


def options_of(options: Iterable[str]) -> dict[str, Any]:
    """Returns the arguments that texts such as "precision=fp8" name; values are YAML.

    Raises:
        InputError: a text is no KEY=VALUE.
    """
    found: dict[str, Any] = {}
    for option in options:
        name, sign, value = option.partition("=")
        if name in found:
            raise InputError(f"--set gives {name} twice. Leave out one.")
        try:
            if not sign or not name.isidentifier():
                raise ValueError
            found[name] = yaml.safe_load(value)
        except (ValueError, yaml.YAMLError):
            raise InputError(
                f"--set must be KEY=VALUE, such as precision=fp8, got {option!r}."
            ) from None
    return found
