"""Checks arguments that hold several items, such as prompts, in one place for every entry point."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from typing import Any

from tts_verifier.errors import InputError


def as_list(values: Any, what: str) -> list[Any]:
    """Returns the items of a list, a tuple, an array or a Series of one axis, or an iterator.

    Args:
        values: the argument. A text, a mapping, a set or a table is refused: iterating over it
            would give its letters, its keys, an arbitrary order or the names of its columns.
        what: the items, for the error, such as "prompts".

    Raises:
        InputError: it is no list of items.
    """
    kind = type(values).__name__
    if isinstance(values, (str, bytes, bytearray, os.PathLike)):
        raise InputError(
            f"A list of {what} is needed, got one {kind}: {str(values)[:60]!r}. Put it into a "
            "list: [...]."
        )
    # pandas, polars and Arrow: their tables have columns, their series have not.
    if isinstance(values, Mapping) or hasattr(values, "columns"):
        raise InputError(
            f"A list of {what} is needed, got a {kind}, whose items are the names of its columns "
            "or keys. Pass one of its columns."
        )
    if isinstance(values, Set):
        raise InputError(
            f"A list of {what} is needed, got a {kind}, which has no order. Sort it into a list."
        )
    axes = getattr(values, "ndim", 1)
    if axes != 1 or not isinstance(values, Iterable):
        shape = f" of {axes} axes" if axes != 1 else ""
        raise InputError(f"A list of {what} is needed, got a {kind}{shape}. Pass a list.")
    # Arrow's own scalars are no Python values.
    return list(values.to_pylist() if hasattr(values, "to_pylist") else values)
