"""Pictures and prompts of tar shards in the layout of WebDataset.

Files that follow each other and have the same name up to its first dot belong together:
`0001.jpg` and `0001.txt`. Nothing is unpacked. The prompt is a text file (`.txt`, `.prompt`,
`.caption` or `.text`), or a key of a `.json`.
"""

from __future__ import annotations

import json
import tarfile
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

from tts_verifier.errors import InputError, RunWarning, readable_name
from tts_verifier.images import is_picture
from tts_verifier.loading.regular_files import open_regular
from tts_verifier.log.storage.files import changed_at
from tts_verifier.scoring.sources.pairs import Pair, problem_of
from tts_verifier.tables import PROMPT_ROLE, RoleColumns, Row, as_cell

SHARD_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TEXT_SUFFIXES: Final = ("txt", "prompt", "caption", "text")
_MOST_TEXT: Final = 2**20
_MOST_PICTURE_BYTES: Final = 2**30
_BAD_ARCHIVE: Final = (tarfile.TarError, OSError, EOFError, ValueError)
"""What reading a damaged archive raises; the errors of its compression are among them."""


@dataclass(slots=True)
class _Sample:
    """What belongs together in a shard."""

    key: str
    pictures: list[tuple[tarfile.TarInfo, Callable[[], bytes]]] = field(default_factory=list)
    """Entries, and what reads them."""
    texts: dict[str, str] = field(default_factory=dict)
    """By suffix."""


def is_shard(name: str) -> bool:
    """Returns whether a name is that of a tar shard."""
    return name.lower().endswith(SHARD_SUFFIXES)


def read_shard(
    path: Path,
    *,
    prompt: str | None = None,
    image_column: str | None = None,
    prompt_column: str | None = None,
) -> Generator[Pair, None, None]:
    """Yields the pictures of a shard with their prompts; only one sample is in memory at a time.

    A shard that is damaged further on ends with a pair that has the reason as its `error`.

    Args:
        path: of the shard.
        prompt: of all pictures, where the shard has no texts.
        image_column: the suffix of pictures, without its first dot; None = those of pictures.
        prompt_column: the suffix of texts, or a key of the JSON; None = the usual ones.

    Raises:
        InputError: it cannot be read, has no picture, or its first sample has no prompt.
    """
    name, found = readable_name(path), False
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:*") as tar:
            about = path.stat()
            version = f"{about.st_size}.{changed_at(about)}"
            for sample in _samples(tar, image_column, lazy=tar.fileobj is file):
                text, error = _prompt_of(sample, prompt_column, prompt, name, first=not found)
                found = True
                for member, load in sample.pictures:
                    place = f"{path}/{member.name}"
                    own = f"{version}.{member.offset_data}.{member.size}"
                    yield Pair(place, text, error, load, own)
            if tar.fileobj is file:
                _check_end(file, tar.offset, name)
    except InputError:
        raise
    except _BAD_ARCHIVE as error:
        reason = getattr(error, "strerror", None)
        if not found:
            problem = f"cannot be read: {reason}" if reason else f"must be a tar file: {error}"
            raise InputError(f"{name} {problem}.") from error
        yield Pair(name, "", f"{name} cannot be read to its end: {reason or error}.")
    if not found:
        raise InputError(f"{name} has no picture. Name its suffix with --image-column.")


def _samples(tar: tarfile.TarFile, suffix: str | None, *, lazy: bool) -> Iterator[_Sample]:
    sample = _Sample("")
    while (member := tar.next()) is not None:
        # They would all be kept otherwise.
        tar.members.clear()  # type: ignore[attr-defined]
        folder, _, name = member.name.rpartition("/")
        if not member.isreg() or name.startswith("."):
            continue
        stem, _, ending = name.partition(".")
        if sample.key != (key := f"{folder}/{stem}"):
            if sample.pictures:
                yield sample
            sample = _Sample(key)
        ending = ending.lower()
        if ending == suffix if suffix else is_picture(name):
            load = partial(_read_member, tar, member)
            # To go back in a compressed archive means to read it from its beginning.
            sample.pictures.append((member, load if lazy else partial(bytes, load())))
        elif not is_picture(name) and member.size <= _MOST_TEXT:
            sample.texts[ending] = _read_member(tar, member).decode("utf-8-sig", "replace")
    if sample.pictures:
        yield sample


def _check_end(file: BinaryIO, end: int, name: str) -> None:
    """Warns where an archive lacks the empty block at its end; `tarfile` does not mind."""
    file.seek(end)
    if len(file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        warnings.warn(
            f"{name} ends without the mark of its end: it may have been cut short.",
            RunWarning,
            stacklevel=2,
        )


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > _MOST_PICTURE_BYTES:
        raise InputError(
            f"a picture has at most {_MOST_PICTURE_BYTES} bytes, this has {member.size}"
        )
    content = tar.extractfile(member)
    return b"" if content is None else content.read()


def _prompt_of(
    sample: _Sample, column: str | None, prompt: str | None, shard: str, *, first: bool
) -> tuple[str, str]:
    """Returns the prompt of a sample, and why it cannot be used."""
    place = f"{shard}/{sample.key.lstrip('/')}"
    try:
        own = _own_prompt(sample, column)
        if first and own is None and prompt is None:
            raise InputError(
                f"{place} has no prompt, which is a .txt beside the picture or the key `prompt` of "
                "a .json. Name the suffix or the key with --prompt-column, or give a --prompt."
            )
        if first and own is not None and prompt is not None:
            raise InputError(f"{shard} has prompts of its own. Leave out --prompt.")
    except InputError as error:
        if first:
            raise
        return "", str(error)
    text = own if prompt is None else prompt
    problem = problem_of(text or "")
    return text or "", f"The prompt of {place} {problem}." if problem else ""


def _own_prompt(sample: _Sample, column: str | None) -> str | None:
    for suffix in _TEXT_SUFFIXES if column is None else (column.lower(),):
        if suffix in sample.texts:
            return sample.texts[suffix].strip()
    if "json" not in sample.texts:
        return None
    try:
        value: Any = json.loads(sample.texts["json"])
    except (ValueError, RecursionError) as error:
        raise InputError(f"{sample.key.lstrip('/')}.json must be JSON: {error}.") from error
    if not isinstance(value, dict):
        return None
    if column is not None:
        return as_cell(value.get(column), f"{column} must be a text or a number")
    row = Row(value)
    return RoleColumns([row], PROMPT_ROLE).cell(row, sample.key.lstrip("/"))
