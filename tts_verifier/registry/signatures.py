"""Checks plain values against the types of a constructor's parameters."""

from __future__ import annotations

import math
import types
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin

from tts_verifier.errors import InputError

UNCHECKED: Final = object()
"""The type of a parameter without an annotation, or with one that cannot be resolved."""
_FROM_YAML: Final = (str, int, float, bool, type(None), list, dict)
"""Types of the values that a file of YAML has; others come from Python, and may be anything."""
_WORDS: Final[Mapping[Any, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    type(None): "none",
    Any: "anything",
    UNCHECKED: "anything",
}
"""What a type is called in messages."""


def value_fits(value: object, kind: Any) -> bool:
    """Returns whether a plain value fits an annotation; True where that cannot be decided.

    An int fits a float, and a list fits any sequence. A bool is not a number, and neither is NaN,
    an infinity or an integer that no float can hold.
    """
    if kind in (UNCHECKED, Any):
        return True
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(value_fits(value, arm) for arm in inner)
    # 1 == True and 1 == 1.0, so the type counts too.
    if origin is Literal:
        return any(value == arm and type(value) is type(arm) for arm in inner)
    if kind is None or kind is type(None):
        return value is None
    # bool is a subclass of int, and YAML reads `yes` as True.
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool) and is_finite(value)
    holder = origin or kind
    # A callable or another special form: no plain value can be refused with certainty.
    if not isinstance(holder, type):
        return True
    if issubclass(holder, Mapping):
        return isinstance(value, dict) and all(_entry_fits(item, inner) for item in value.items())
    # A str is a sequence of str, but a recipe that gives one for a list has a mistake.
    if holder is not str and issubclass(holder, Sequence):
        items = inner[0] if inner else UNCHECKED
        return isinstance(value, list) and all(value_fits(item, items) for item in value)
    try:
        return isinstance(value, holder)
    except TypeError:
        # A protocol that says nothing of values at run time.
        return True


def check_arguments(
    part: str, arguments: Mapping[str, Any], accepted: Mapping[str, tuple[Any, Any]]
) -> None:
    """Raises InputError for a plain value that does not fit the annotation of its parameter.

    Args:
        part: what is built, to begin the message with.
        arguments: parameter -> value.
        accepted: parameter -> (annotation, default). None fits where it is the default.
    """
    for name, value in arguments.items():
        kind, default = accepted[name]
        unset = value is None and default is None
        if type(value) in _FROM_YAML and not unset and not value_fits(value, kind):
            raise InputError(
                f"{part}: {name} must be {describe(kind)}, got {value!r:.200}.", argument=name
            )


def is_finite(value: object) -> bool:
    """Returns False for NaN, infinities and integers that no float can hold; otherwise True."""
    try:
        return not isinstance(value, (int, float)) or math.isfinite(value)
    except OverflowError:
        return False


def _entry_fits(item: tuple[Any, Any], inner: tuple[Any, ...]) -> bool:
    return len(inner) != 2 or (value_fits(item[0], inner[0]) and value_fits(item[1], inner[1]))


def describe(kind: Any) -> str:
    """Returns an annotation as words for a message, such as "a whole number or none"."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(describe, inner)))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if isinstance(kind, Hashable) and kind in _WORDS:
        return _WORDS[kind]
    holder = origin or kind
    if isinstance(holder, type) and issubclass(holder, Mapping):
        return f"a table, each value {describe(inner[1])}" if _says(inner[1:]) else "a table"
    if isinstance(holder, type) and issubclass(holder, Sequence):
        return f"a list, each item {describe(inner[0])}" if _says(inner[:1]) else "a list"
    return holder.__name__ if isinstance(holder, type) else str(kind).rpartition(".")[2]


def _says(inner: tuple[Any, ...]) -> bool:
    return bool(inner) and inner[0] not in (Any, object)
