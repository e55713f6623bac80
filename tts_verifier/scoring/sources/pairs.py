"""Images with their prompts, from a list of files and one prompt or from a table of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tts_verifier.errors import InputError, readable_name
from tts_verifier.images import as_list
from tts_verifier.loading.regular_files import user_path
from tts_verifier.tables import (
    IMAGE_ROLE,
    PROMPT_ROLE,
    TABLE_SUFFIXES,
    RoleColumns,
    Row,
    read_table,
)

_NAME_ONE: Final = "Name one with --image-column or --prompt-column."


class NoPictures(InputError):
    """A table or a shard is whole and has none."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and what it should show."""

    image: str
    """The file's path; of an image inside of a table or a shard, the name of its place there."""
    prompt: str
    """What the image should show."""
    error: str = ""
    """Why the pair cannot be scored, if that is known already."""
    load: Callable[[], bytes] | None = field(default=None, compare=False, repr=False)
    """Reads an image that is no file of its own. To be called before the next pair is taken."""
    version: str = field(default="", compare=False)
    """Changes whenever the table or shard of such an image does."""


def pairs_of(paths: Sequence[str], prompt: str) -> list[Pair]:
    """Returns a pair for each file, all with the same prompt.

    Raises:
        InputError: the prompt is empty, or no valid Unicode.
    """
    if problem := problem_of(prompt):
        raise InputError(f"The prompt {problem}, got {prompt!r:.80}.")
    return [Pair(path, prompt) for path in as_list(paths, "paths")]


def is_table(name: str) -> bool:
    """Returns whether a name is that of a table; a .txt file has no columns."""
    suffix = Path(name).suffix.lower()
    return suffix in TABLE_SUFFIXES and suffix != ".txt"


def read_pairs(
    table: Path,
    *,
    prompt: str | None = None,
    image_column: str | None = None,
    prompt_column: str | None = None,
) -> list[Pair]:
    """Reads a table of images and prompts.

    Args:
        table: a .csv, .tsv, .json, .jsonl, .ndjson or .parquet file. Its paths are relative to
            its folder; `~` is the home folder.
        prompt: for all images, where the table has no column of prompts.
        image_column: the column of paths; None = `image`, or else `path`, `file`, `file_name`, ...
        prompt_column: the column of prompts; None = `prompt`, or else `prompts`, `text`, `caption`.

    Raises:
        InputError: the table cannot be read, or has no such columns.
    """
    table = user_path(table)
    rows = read_table(table)
    name = readable_name(table)
    images, texts = columns_of(
        rows, name, prompt=prompt, image_column=image_column, prompt_column=prompt_column
    )
    return [pair_of(row, images, texts, folder=table.parent, prompt=prompt) for row in rows]


def columns_of(
    rows: Sequence[Row],
    name: str,
    *,
    prompt: str | None,
    image_column: str | None,
    prompt_column: str | None,
) -> tuple[RoleColumns, RoleColumns]:
    """Returns a table's columns of images and of prompts; see `read_pairs`.

    Args:
        rows: of the table, or one row that has all columns.
        name: of the table, for messages.
        prompt: for all images.
        image_column: as in `read_pairs`.
        prompt_column: as in `read_pairs`.

    Raises:
        InputError: there is no row, or there are no such columns.
    """
    if not rows:
        raise NoPictures(f"{name} has no row. Give a table of images and prompts.")
    try:
        images = RoleColumns(rows, IMAGE_ROLE, image_column, remedy=_NAME_ONE)
        texts = RoleColumns(rows, PROMPT_ROLE, prompt_column, remedy=_NAME_ONE)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if not images.found:
        raise InputError(f"{name} has no column of images ({IMAGE_ROLE.usual}). {images.listed}")
    if not texts.found and prompt is None:
        raise InputError(f"{name} has no column of prompts ({PROMPT_ROLE.usual}). {texts.listed}")
    if texts.found and prompt is not None:
        raise InputError(f"{name} has prompts of its own. Leave out --prompt.")
    return images, texts


def pair_of(
    row: Row, images: RoleColumns, texts: RoleColumns, *, folder: Path, prompt: str | None
) -> Pair:
    """Returns the pair of a row; with an `error` where it names no image or has no usable prompt.

    Args:
        row: of a table.
        images: the table's columns of paths.
        texts: the table's columns of prompts.
        folder: of the table; paths are relative to it.
        prompt: for all images, where there is no column of prompts.

    Raises:
        InputError: the row has no columns, or a cell is neither text nor a number.
    """
    if not isinstance(row.value, Mapping):
        raise InputError(f"{row.place} must have columns, got {row.value!r:.80}.")
    given = images.cell(row, row.place)
    text = (texts.cell(row, row.place) if texts.found else prompt) or ""
    # One bad row of a table is no reason to score none of the others.
    if not given or not given.strip():
        return Pair("", text, f"{row.place} names no image.")
    path, error = given, ""
    try:
        path = str(folder / user_path(given))
    except InputError as fault:
        error = f"{row.place}: {fault}"
    if problem := problem_of(text):
        error = f"The prompt of {row.place} {problem}."
    return Pair(path, readable_name(text), error)


def problem_of(prompt: str) -> str:
    """Returns what a prompt must be and is not; "" if it can be used."""
    if not prompt.strip():
        return "must be a text that is not empty"
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        return f"must be valid Unicode: {error.reason}"
    return ""
