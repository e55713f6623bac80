"""Reads the prompts of a run from lists, mappings, tables and files.

The columns are those of published prompt sets: `prompt` (or `prompts`, `text`, `caption`) in any
case, and `category` (or `tag`). Other columns are left out. An `id` is kept; a prompt without one
gets its position as its id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Final

from tts_verifier.errors import InputError, readable_name
from tts_verifier.tables import (
    CATEGORY_ROLE,
    PROMPT_ROLE,
    TABLE_SUFFIXES,
    RoleColumns,
    Row,
    as_cell,
    read_table,
    rows_of,
)
from tts_verifier.types import Prompt

_NAME_ONE: Final = (
    "Rename a column, or name it: read_prompts(path, column=...), or in a recipe "
    "`prompts: {file: ..., column: ...}`."
)


def as_prompts(items: Iterable[Prompt | str | Mapping[str, object]]) -> tuple[Prompt, ...]:
    """Returns prompts with ids. A prompt without an id gets its position: "0000", "0001", ...

    A text may occur more than once, as in some benchmarks: each has images of its own.

    Args:
        items: prompts, texts, or mappings with `prompt` (or `text`) and perhaps `id` and
            `category` (or `tag`), a word by which reports group prompts; or a table of pandas,
            polars or Arrow with such columns; or the path of a file, for `read_prompts`.

    Raises:
        InputError: there is no prompt, one is empty, or two have the same id.
    """
    if isinstance(items, Path):
        return read_prompts(items)
    # Iterating over these gives letters, keys or no order.
    # So does an array of no axis, which has the method of a list all the same.
    listable = isinstance(items, Iterable) or hasattr(items, "to_pylist")
    no_list = isinstance(items, (str, bytes, Mapping, Set)) or getattr(items, "ndim", 1) == 0
    if no_list or not listable:
        raise InputError(
            f"A list of prompts is needed, got {items!r:.200}. Put one prompt into a list; a file "
            "is read by read_prompts(Path(...))."
        )
    return _prompts_of_rows(rows_of(items))


def read_prompts(
    path: Path, *, column: str | None = None, category: str | None = None
) -> tuple[Prompt, ...]:
    """Reads a .txt file (one prompt a line, blank lines skipped) or a table.

    Args:
        path: .txt, .csv, .tsv, .json, .jsonl, .ndjson or .parquet, in any case; see
            `tables.read`.
        column: the column of prompts; None = the one with a usual name.
        category: the column of categories, likewise.

    Raises:
        InputError: the file cannot be read, or a line is not a prompt.
    """
    if path.suffix.lower() not in TABLE_SUFFIXES:
        tables = ", ".join(suffix for suffix in TABLE_SUFFIXES if suffix != ".txt")
        raise InputError(
            f"A file of prompts must be .txt or a table ({tables}), got {readable_name(path)}. One "
            "prompt is a list too: [a cat]."
        )
    try:
        rows = read_table(path)
    except InputError as error:
        raise InputError(f"The prompts {error}") from error
    try:
        return _prompts_of_rows(rows, column=column, category=category)
    except InputError as error:
        raise InputError(f"{readable_name(path)}: {error}") from error


def _prompts_of_rows(
    rows: Sequence[Row], *, column: str | None = None, category: str | None = None
) -> tuple[Prompt, ...]:
    if not rows:
        raise InputError("A run needs at least one prompt, got none.")
    texts = RoleColumns(rows, PROMPT_ROLE, column, remedy=_NAME_ONE)
    categories = RoleColumns(rows, CATEGORY_ROLE, category, remedy=_NAME_ONE)
    prompts = [_prompt_of_row(i, row, texts, categories) for i, row in enumerate(rows)]
    return _numbered(prompts)


def _prompt_of_row(index: int, row: Row, texts: RoleColumns, categories: RoleColumns) -> Prompt:
    """Returns a row's prompt; its id is "" if it has none."""
    value, where = row.value, f"{row.place}: " if row.place else ""
    what = f"{where}Prompt {index}"
    if isinstance(value, Prompt):
        prompt = value
    elif isinstance(value, Mapping):
        own_id = as_cell(value.get("id"), f"{what} must have a string or a number as id")
        text, word = texts.cell(row, what), categories.cell(row, what)
        prompt = Prompt(own_id or "", text or "", word or "")
    else:
        prompt = Prompt("", str(value) if isinstance(value, str) else "")
    if not prompt.text.strip() or (isinstance(value, Prompt) and not prompt.id):
        # Without a single prompt, the columns are probably named in another way.
        listed = f" {texts.listed}" if isinstance(value, Mapping) and not texts.found else ""
        raise InputError(
            f"{what} must be a text that is not empty, or have one as `prompt`: "
            f"{value!r:.200}.{listed}"
        )
    # A lone surrogate, which JSON can express, would fail much later: in a hash or in the log.
    try:
        (prompt.text + prompt.id + prompt.category).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} must be valid Unicode: {error.reason}.") from error
    return prompt


def _numbered(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """Returns the prompts with an id each, and with the number of earlier ones of their text."""
    positions: dict[str, int] = {}
    for i, prompt in enumerate(prompts):
        if prompt.id in positions:
            raise InputError(
                f"Prompts {positions[prompt.id]} and {i} have the same id, {prompt.id[:60]!r}; "
                "each must have its own."
            )
        if prompt.id:
            positions[prompt.id] = i
    earlier = Counter[str]()
    numbered = []
    for i, prompt in enumerate(prompts):
        own_id = prompt.id or _free_id(i, positions)
        numbered.append(replace(prompt, id=own_id, repeat=earlier[prompt.text]))
        earlier[prompt.text] += 1
    return tuple(numbered)


def _free_id(index: int, taken: Mapping[str, int]) -> str:
    name = f"{index:04d}"
    # Other rows may have this as the id that they came with.
    while name in taken:
        name += "+"
    return name
