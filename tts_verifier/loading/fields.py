"""Checks single fields of a checkpoint's configuration: their types and their sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tts_verifier.errors import CheckpointError


def integer_field(name: str, value: object, low: int, high: int) -> int:
    """Returns an integer field.

    Args:
        name: of the field, as the file has it.
        value: its value.
        low: the least value, inclusive.
        high: the largest value, inclusive.

    Raises:
        CheckpointError: the value is no integer, or outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CheckpointError(
            f"{name} must be an integer from {low} to {high}, got {_brief(value)}."
        )
    return value


def number_field(name: str, value: object, low: float, high: float) -> float:
    """Returns a field that is a finite number; see `integer_field`."""
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high:
            return float(value)
    except OverflowError:
        pass
    raise CheckpointError(
        f"{name} must be a finite number from {low:g} to {high:g}, got {_brief(value)}."
    )


def integer_fields(name: str, value: object, low: int, high: int, *, most: int) -> tuple[int, ...]:
    """Returns a field that is a list of integers, at most `most`; see `integer_field`."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or len(value) > most:
        raise CheckpointError(
            f"{name} must be a list of at most {most} integers, got {_brief(value)}."
        )
    return tuple(integer_field(name, item, low, high) for item in value)


def table_field(name: str, value: object) -> dict[str, Any]:
    """Returns a field that is a table, empty where it is absent or null.

    Raises:
        CheckpointError: the value is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{name} must be a table of keys, got {_brief(value)}.")
    return dict(value)


def check_numbers(name: str, value: object, limit: int) -> None:
    """Raises CheckpointError where a number inside a value is not finite or exceeds a limit.

    Args:
        name: of the value, for the message.
        value: from a JSON file, with tables and lists inside.
        limit: the largest absolute value of an integer.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            # The base of rotary positions is a number like any other, and may be very large.
            if str(key).endswith("theta") and isinstance(item, int):
                continue
            check_numbers(f"{name}.{key}" if name else str(key), item, limit)
    elif isinstance(value, list):
        for item in value:
            check_numbers(name, item, limit)
    elif isinstance(value, int) and abs(value) > limit:
        raise CheckpointError(
            f"{name} must be a number of at most {limit} here, got {_brief(value)}."
        )
    elif isinstance(value, float) and not math.isfinite(value):
        raise CheckpointError(f"{name} must be a finite number, got {value}.")


def _brief(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits has no decimal text
        return "an integer of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}…"
