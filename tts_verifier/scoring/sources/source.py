"""The pictures that a command names, one after the other: files, folders, tables and shards."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

from tts_verifier.errors import InputError, RunWarning
from tts_verifier.loading.regular_files import user_path
from tts_verifier.scoring.row_index import RowIndex
from tts_verifier.scoring.sources.find import files_of
from tts_verifier.scoring.sources.pairs import NoPictures, Pair, is_table, pairs_of, read_pairs
from tts_verifier.scoring.sources.parquet import ParquetSource
from tts_verifier.scoring.sources.shards import is_shard, read_shard

_HERE: Final = 1


@dataclass(frozen=True, slots=True)
class PairSource:
    """The pairs of a command's arguments; iterating over it reads them anew."""

    parts: Sequence[Callable[[], Iterable[Pair]]]
    """Read one after the other."""
    has_prompts: bool
    """Whether some pairs have a prompt of their own."""
    inside: str = ""
    """The first argument with pictures that are no files of their own."""

    def __iter__(self) -> Iterator[Pair]:
        return chain.from_iterable(part() for part in self.parts)


def open_pairs(
    arguments: Sequence[str],
    *,
    prompt: str | None = None,
    image_column: str | None = None,
    prompt_column: str | None = None,
) -> PairSource:
    """Finds out what the arguments are, and checks what can be checked without reading pictures.

    Args:
        arguments: image files, folders, globs, tables (`read_pairs`; Parquet also with columns of
            bytes) and tar shards. Globs may name tables and shards too.
        prompt: of all images that have none of their own. With files beside tables and shards, it
            is that of the files.
        image_column: of tables, the column of images; of shards, the suffix of images.
        prompt_column: of tables, the column of prompts; of shards, the suffix of texts, or a key
            of their JSON.

    Raises:
        InputError: an argument matches nothing or cannot be read, or prompts are missing.
    """
    if not arguments:
        raise InputError("There is no picture. Name files, folders, globs, tables or shards.")
    names = [name for argument in arguments for name in _expanded(argument)]
    patterns = [name for name in names if not is_table(name) and not is_shard(name)]
    parts: list[Callable[[], Iterable[Pair]]] = []
    inside = ""
    if patterns:
        parts.append(_files(patterns, prompt))
        prompt = None
    columns = {"prompt": prompt, "image_column": image_column, "prompt_column": prompt_column}
    for name in (name for name in names if name not in patterns):
        try:
            part, has_bytes = _part_of(name, columns)
        except NoPictures as error:
            # Of many parts, some may be empty.
            if len(names) == 1:
                raise
            warnings.warn(f"{error} It is left out.", RunWarning, stacklevel=2)
            continue
        parts.append(part)
        inside = inside or (name if has_bytes else "")
    if not parts:
        raise NoPictures(f"None of {len(names)} tables and shards has a picture.")
    return PairSource(parts, len(parts) > bool(patterns), inside)


def _part_of(
    name: str, columns: Mapping[str, str | None]
) -> tuple[Callable[[], Iterable[Pair]], bool]:
    """Returns what reads a table or a shard, and whether its pictures are inside of it."""
    path = user_path(name)
    if is_shard(name):
        # The first picture shows whether the shard has texts.
        with closing(read_shard(path, **columns)) as shard:
            next(shard)
        return partial(read_shard, path, **columns), True
    if path.suffix.lower() == ".parquet":
        table = ParquetSource(path, **columns)
        return table.__iter__, table.has_bytes
    return partial(list, read_pairs(path, **columns)), False


def _expanded(argument: str) -> list[str]:
    """Returns the tables and shards that a glob or a folder of parts names; others as they are."""
    if not (is_table(argument) or is_shard(argument)):
        return [argument]
    path = str(user_path(argument))
    if os.path.isdir(path):
        # As Spark and Ray write a table.
        suffix = Path(path).suffix
        return sorted(glob.glob(f"{glob.escape(path)}/*{suffix}")) or [argument]
    if not glob.has_magic(argument):
        return [argument]
    found = [] if Path(path).exists() else sorted(glob.glob(path, recursive=True))
    return found or [argument]


def _files(patterns: Sequence[str], prompt: str | None) -> Callable[[], Iterator[Pair]]:
    if prompt is None:
        raise InputError(
            "Images need a --prompt that says what they should show."
            + "".join(map(_hint, patterns[:1]))
        )
    pairs_of([], prompt)
    for pattern in patterns:
        try:
            with closing(files_of(pattern)) as files:
                next(files)
        except InputError as error:
            raise InputError(f"{error}{_hint(pattern)}") from error

    def pairs() -> Iterator[Pair]:
        seen = RowIndex()
        for pattern in patterns:
            for real, path in files_of(pattern):
                # Paths themselves would take ten times the memory.
                number = hash(real) % 2**64
                if seen.get(number) is None:
                    seen.add(number, _HERE)
                    yield Pair(path, prompt)

    return pairs


def _hint(folder: str) -> str:
    """Returns how to name the tables or shards of a folder, if it has some."""
    for entry in sorted(glob.glob(f"{glob.escape(str(user_path(folder)))}/*")):
        if is_shard(entry) or Path(entry).suffix.lower() == ".parquet":
            return f" Tables and shards of a folder are named as {folder}/*{Path(entry).suffix}."
    return ""
