"""Rows with their places, from anything in Python that holds a table or a list."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of a list or a table."""

    value: object
    """A text, or a mapping of columns to values; anything else is for the caller to refuse."""
    place: str = ""
    """File and line, such as "prompts.csv:3"; "" for values in Python."""


def rows_of(items: Iterable[Any]) -> list[Row]:
    """Returns the rows of a list, or of a table of pandas, polars or Arrow."""
    table: Any = items
    # Iterating over these tables would give columns or column names, not rows.
    if hasattr(table, "to_pylist"):
        items = table.to_pylist()
    elif hasattr(table, "to_dicts"):
        items = table.to_dicts()
    elif hasattr(table, "columns") and hasattr(table, "to_dict"):
        items = table.to_dict("records")
    return [Row(item) for item in items]
