"""Checks plain values against the types of a constructor's parameters."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from tts_verifier.registry import UNCHECKED


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
    return isinstance(value, holder)


def is_finite(value: object) -> bool:
    """Returns False for NaN, infinities and integers that no float can hold; otherwise True."""
    try:
        return not isinstance(value, (int, float)) or math.isfinite(value)
    except OverflowError:
        return False


def _entry_fits(item: tuple[Any, Any], inner: tuple[Any, ...]) -> bool:
    return len(inner) != 2 or (value_fits(item[0], inner[0]) and value_fits(item[1], inner[1]))


def describe(kind: Any) -> str:
    """Returns an annotation as text for a message."""
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
