"""Finds the columns that hold prompts, categories and images, by their usual names."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tts_verifier.errors import InputError
from tts_verifier.tables.rows import Row


@dataclass(frozen=True, slots=True)
class Role:
    """What a column is for, and how such columns are named."""

    what: str
    """For messages: "a prompt"."""
    names: tuple[tuple[str, ...], ...]
    """Names in lower case. A name of an earlier group takes precedence over later groups; two
    columns with names of the same group are ambiguous."""

    @property
    def usual(self) -> str:
        """All names, for messages."""
        return ", ".join(name for group in self.names for name in group)


PROMPT_ROLE: Final = Role("a prompt", (("prompt",), ("prompts", "text", "caption")))
CATEGORY_ROLE: Final = Role("a category", (("category",), ("tag",)))
IMAGE_ROLE: Final = Role(
    "an image",
    (("image",), ("path", "file", "file_name", "filename", "image_path", "image_file", "filepath")),
)


class RoleColumns:
    """The columns of some rows that have a role.

    Args:
        rows: of one table.
        role: what is looked for.
        chosen: the column's name, where the user gives it.
        remedy: the end of a message about columns: how the user names one.

    Raises:
        InputError: the chosen column is not there, or two columns may have the role.
    """

    def __init__(
        self, rows: Sequence[Row], role: Role, chosen: str | None = None, *, remedy: str = ""
    ) -> None:
        names = (
            name
            for row in rows
            if isinstance(row.value, Mapping)
            for name in row.value
            if isinstance(name, str)
        )
        self.names: tuple[str, ...] = tuple(dict.fromkeys(names))
        """All columns of the rows."""
        self._role, self._remedy = role, remedy
        self._found = self._usual_columns() if chosen is None else self._checked(chosen)

    @property
    def found(self) -> bool:
        """Whether a column has the role."""
        return bool(self._found)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that have the role; of these, a row's first value counts."""
        return self._found

    @property
    def listed(self) -> str:
        """All columns and how to name one, for messages."""
        return f"The columns are: {', '.join(self.names) or 'none'}. {self._remedy}".rstrip()

    def cell(self, row: Row, what: str) -> str | None:
        """Returns the row's text, None if it has none.

        Args:
            row: one whose value is a mapping.
            what: names the row in messages.

        Raises:
            InputError: the value is neither text nor a number.
        """
        values = row.value
        assert isinstance(values, Mapping)
        for name in self._found:
            value = values.get(name)
            # The message is made only where it may be needed: there may be a million rows.
            if type(value) is str:
                return value
            text = as_cell(value, f"{what} must have a text or a number as {name}")
            # Lines of JSON may differ in their keys, and null is as good as no key.
            if text is not None:
                return text
        return None

    def _checked(self, chosen: str) -> tuple[str, ...]:
        if chosen not in self.names:
            raise InputError(f"There is no column {chosen!r}. {self.listed}")
        return (chosen,)

    def _usual_columns(self) -> tuple[str, ...]:
        found: list[str] = []
        for group in self._role.names:
            matches = [name for name in self.names if name.strip().casefold() in group]
            if len(matches) > 1 and not found:
                raise InputError(
                    f"More than one column may hold {self._role.what}: {', '.join(matches)}. "
                    f"{self.listed}"
                )
            found += matches if len(matches) == 1 else []
        return tuple(found)


def as_cell(value: object, rule: str) -> str | None:
    """Returns a value as text: numbers as they are written, None for null and NaN.

    Args:
        value: of a cell.
        rule: the beginning of a message.

    Raises:
        InputError: the value is neither text nor a number.
    """
    if isinstance(value, str):
        return str(value)
    # pandas has a class of its own for what is missing.
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value) if not isinstance(value, numbers.Integral) else int(value)
        if isinstance(number, float) and math.isnan(number):
            return None
        # A column of whole numbers with a gap is one of floats in pandas and Parquet.
        whole = isinstance(number, float) and number.is_integer() and abs(number) < 2**53
        return str(int(number)) if whole else repr(number)
    raise InputError(f"{rule}, got {value!r:.80}.")
