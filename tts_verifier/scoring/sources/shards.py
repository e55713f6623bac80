"""Pictures and prompts of tar shards in the layout of WebDataset.

Files that follow each other and have the same name up to its first dot belong together:
`0001.jpg` and `0001.txt`. Nothing is unpacked. The prompt is a text file (`.txt`, `.prompt`,
`.caption` or `.text`), or a key of a `.json`.
"""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from tts_verifier.errors import InputError, RunWarning, readable_name
from tts_verifier.images import is_picture
from tts_verifier.loading.regular_files import open_regular
from tts_verifier.log.storage.files import changed_at
from tts_verifier.scoring.sources.pairs import NoPictures, Pair, problem_of
from tts_verifier.tables import PROMPT_ROLE, RoleColumns, Row, as_cell

SHARD_SUFFIXES: Final = (
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"),
    # Recognised, and refused with a reason.
    *(".tar.zst", ".tzst", ".tar.lz4", ".tar.z"),
)
_NO_ARCHIVE: Final = "it is none, nor one that gzip, bzip2 or xz has compressed"
_TEXT_SUFFIXES: Final = ("txt", "prompt", "caption", "text")
_MOST_TEXT: Final = 2**20
_READ_AT_ONCE: Final = 2**20
_MOST_PICTURE_BYTES: Final = 2**30
_BAD_ARCHIVE: Final = (tarfile.TarError, OSError, EOFError, ValueError)
"""What reading a damaged archive raises; the errors of its compression are among them."""
_BAD_HEADER: Final[tuple[type[Exception], ...]] = (
    tarfile.InvalidHeaderError,  # type: ignore[attr-defined]
    tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
)


class _Header(tarfile.TarInfo):
    """A header that may be damaged: `tarfile` takes a damaged one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tar)
        except _BAD_HEADER as error:
            if tar.offset == 0:
                raise
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from error


@dataclass(slots=True)
class _Sample:
    """What belongs together in a shard."""

    key: str
    pictures: list[tuple[tarfile.TarInfo, Callable[[], bytes]]] = field(default_factory=list)
    """Entries, and what reads them."""
    texts: dict[str, bytes] = field(default_factory=dict)
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
        with (
            open_regular(path) as file,
            tarfile.open(fileobj=file, mode="r:*", tarinfo=_Header) as tar,
        ):
            about = path.stat()
            version = f"{about.st_size}.{changed_at(about)}"
            for sample in _samples(tar, name, suffix=image_column, texts=prompt is None):
                text, error = _prompt_of(sample, prompt_column, prompt, name, first=not found)
                found = True
                for member, load in sample.pictures:
                    place = f"{path}/{member.name}"
                    own = f"{version}.{member.offset_data}.{member.size}"
                    yield Pair(place, text, error, load, own)
    except InputError:
        raise
    except _BAD_ARCHIVE as error:
        reason = getattr(error, "strerror", None)
        if not found:
            # Of an archive that no method opens, the message has a line for each method.
            own = str(error) if "\n" not in str(error) else _NO_ARCHIVE
            problem = f"cannot be read: {reason}" if reason else f"must be a tar file: {own}"
            raise InputError(f"{name} {problem}.") from error
        yield Pair(name, "", f"{name} cannot be read to its end: {reason or error}.")
    if not found:
        raise NoPictures(f"{name} has no picture. Name its suffix with --image-column.")


def _samples(
    tar: tarfile.TarFile, name: str, *, suffix: str | None, texts: bool
) -> Iterator[_Sample]:
    sample, wanted = _Sample(""), (suffix or "").lower().removeprefix(".")
    # To go back in a compressed archive means to read it from its beginning.
    lazy = isinstance(tar.fileobj, io.BufferedReader)
    while True:
        try:
            member = tar.next()
        except _BAD_ARCHIVE:
            # Its text may be in what cannot be read.
            if sample.pictures and (sample.texts or not texts):
                yield sample
            raise
        if member is None:
            break
        # They would all be kept otherwise.
        tar.members.clear()  # type: ignore[attr-defined]
        folder, _, own = member.name.rpartition("/")
        if not (member.isreg() or member.issym() or member.islnk()) or own.startswith("."):
            continue
        stem, _, ending = own.partition(".")
        if sample.key != (key := f"{folder}/{stem}"):
            if sample.pictures:
                yield sample
            sample = _Sample(key)
        ending = ending.lower()
        if ending == wanted if wanted else is_picture(own):
            sample.pictures.append((member, _loader(tar, member, lazy=lazy)))
        elif member.isreg() and not is_picture(own) and member.size <= _MOST_TEXT:
            sample.texts[ending] = _read_member(tar, member)
    problem = _problem_at_end(tar, name)
    if sample.pictures:
        yield sample
    if problem:
        raise tarfile.ReadError(problem)


def _loader(tar: tarfile.TarFile, member: tarfile.TarInfo, *, lazy: bool) -> Callable[[], bytes]:
    if not member.isreg():
        return partial(_refuse_link, member.linkname)
    if member.size > _MOST_PICTURE_BYTES:
        return partial(_refuse_size, member.size)
    load = partial(_read_member, tar, member)
    return load if lazy else partial(bytes, load())


def _refuse_link(to: str) -> bytes:
    raise InputError(
        f"it is a link to {readable_name(to)}, and links in shards are not followed; store the "
        "picture itself"
    )


def _refuse_size(size: int) -> bytes:
    raise InputError(f"a picture has at most {_MOST_PICTURE_BYTES} bytes, this has {size}")


def _problem_at_end(tar: tarfile.TarFile, name: str) -> str:
    """Returns what follows the end of an archive; warns if the end itself has no mark.

    `tarfile` minds neither. The file is read where it stands: a compressed one cannot go back.
    """
    file = cast(BinaryIO, tar.fileobj)
    if file.tell() <= tar.offset:
        warnings.warn(
            f"{name} ends without the mark of its end: it may have been cut short.",
            RunWarning,
            stacklevel=2,
        )
    # Nothing but zeros is padding.
    while block := file.read(_READ_AT_ONCE):
        if block.strip(b"\0"):
            return (
                f"more follows the end at byte {tar.offset}; if archives were joined, name them "
                "one by one"
            )
    return ""


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    return b"" if content is None else content.read()


def _prompt_of(
    sample: _Sample, column: str | None, prompt: str | None, shard: str, *, first: bool
) -> tuple[str, str]:
    """Returns the prompt of a sample, and why it cannot be used."""
    place = f"{shard}/{sample.key.lstrip('/')}"
    try:
        own = _own_prompt(sample, column, place)
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


def _own_prompt(sample: _Sample, column: str | None, place: str) -> str | None:
    for suffix in _TEXT_SUFFIXES if column is None else (column.lower().removeprefix("."),):
        if suffix in sample.texts:
            return _utf8_text(sample.texts[suffix], f"{place}.{suffix}").strip()
    if "json" not in sample.texts:
        return None
    text = _utf8_text(sample.texts["json"], f"{place}.json")
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}.json must be JSON: {error}.") from error
    if not isinstance(value, dict):
        return None
    row = Row(value)
    try:
        if column is not None:
            return as_cell(value.get(column), f"{column} must be a text or a number")
        return RoleColumns([row], PROMPT_ROLE).cell(row, "it")
    except InputError as error:
        raise InputError(f"{place}.json: {error} Name a key with --prompt-column.") from error


def _utf8_text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # With other letters in its place, a picture would be scored against another prompt.
        raise InputError(f"{name} must be text in UTF-8: {error.reason}.") from error
