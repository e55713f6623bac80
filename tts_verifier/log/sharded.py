"""A run folder of many writers: each shard of the prompts has a run folder of its own below it.

    header.json          what the run is, and the number of prompts of each shard
    prompts.jsonl        the prompts; the header has the file's digest in their place
    lock                 the coordinator, while there is one
    session.json         whose shards may be worked on: a worker of an earlier coordinator stops
    shards/00000/        a run folder, as one process writes it
    shards/00000.2/      its second attempt: another machine had begun the shard and is lost

An attempt starts with copies of what earlier ones wrote and never changes them, so that a late
writer harms nothing. The last attempt counts. `done.json` in it, which is written last, marks a
finished shard.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import RunError
from tts_verifier.identity import canonical
from tts_verifier.log.header import HEADER, read_header, write_header
from tts_verifier.log.storage.files import Folder, files_in
from tts_verifier.log.storage.tables import DIGESTS, PARTS, TABLE
from tts_verifier.types import Prompt
from tts_verifier.types.paths import path_inside, read_inside

SHARDS: Final = "shards"
PROMPTS: Final = "prompts.jsonl"
DONE: Final = "done.json"
_ATTEMPT: Final = re.compile(r"(\d{5,9})(?:\.([1-9]\d{0,5}))?", re.ASCII)
# Parts first: the files that a row names were there before the row.
_COPIED: Final = (PARTS, "waiting", "images", "heatmaps", "masks", "states")


@dataclass(frozen=True, slots=True)
class Shards:
    """The shards of a run."""

    folder: Path
    """The run folder."""
    run: str
    """The run's id."""
    sizes: Mapping[str, int]
    """Name of each shard -> the number of its prompts, in the order of the prompts."""

    def split(self, prompts: Sequence[Prompt]) -> Iterator[tuple[str, tuple[Prompt, ...]]]:
        """Yields each shard's name and prompts."""
        rest = iter(prompts)
        for name, size in self.sizes.items():
            yield name, tuple(islice(rest, size))


def open_shards(
    folder: Folder,
    about: Mapping[str, Any],
    prompts: Sequence[Prompt],
    *,
    size: int,
    grows: Collection[str] = (),
) -> Shards:
    """Starts the folder of a run of shards, or opens that of the same run to continue it.

    The caller holds the folder's lock.

    Args:
        folder: the run folder.
        about: JSON values that identify the run, without the prompts.
        prompts: all of them.
        size: prompts of a shard in a new folder; that of an older one stays as it is.
        grows: as in `write_header`.

    Raises:
        RunError: the folder belongs to another run, or to one without shards.
    """
    content = b"".join(
        canonical(
            {"id": p.id, "prompt": p.text, "category": p.category, "repeat": p.repeat}
        ).encode()
        + b"\n"
        for p in prompts
    )
    digest = hashlib.sha256(content).hexdigest()
    named = {"file": PROMPTS, "sha256": digest, "count": len(prompts)}
    begun = any(
        os.path.lexists(_attempt_folder(folder.root, name, number) / HEADER)
        for name, number in _last_numbers(folder.root).items()
    )
    if not begun and shards_of(folder.root):
        # No worker came so far as to begin a shard: the recipe may have been mended since.
        folder.delete(HEADER)
    if begun and not os.path.lexists(folder.root / HEADER):
        raise RunError(
            f"{folder.root} holds the shards of a run but no {HEADER} that says which run. Put it "
            "back, or choose another output folder."
        )
    sizes = {
        f"{number:05d}": min(size, len(prompts) - start)
        for number, start in enumerate(range(0, len(prompts), size))
    }
    _check_same_prompts(folder.root, named, content)
    binding = write_header(folder, {**about, "prompts": named}, grows=grows, shards=sizes)
    if _prompts_there(folder.root) != content:
        folder.write(PROMPTS, content)
    shards = Shards(folder.root, binding.run, read_header(folder.root)["shards"])
    if sum(shards.sizes.values()) != len(prompts):
        raise RunError(
            f"The shards in {folder.root / HEADER} must hold all {len(prompts)} prompts, they hold "
            f"{sum(shards.sizes.values())}: the file was changed. Choose another output folder."
        )
    return shards


def _check_same_prompts(folder: Path, named: Mapping[str, Any], content: bytes) -> None:
    """Raises RunError with the first prompt that differs from those of the folder."""
    if not shards_of(folder) or read_header(folder)["about"].get("prompts") == named:
        return
    lines = zip_longest(
        _prompts_there(folder).splitlines(), content.splitlines(), fillvalue=b"no prompt"
    )
    for number, (old, new) in enumerate(lines, 1):
        if old != new:
            raise RunError(
                f"{folder} belongs to another run, whose prompts differ; the first in line "
                f"{number} of {PROMPTS}:\n  {old.decode(errors='replace'):.300} there, "
                f"{new.decode():.300} here\nChoose another output folder, or give that run's "
                "prompts to continue it."
            )


def _prompts_there(folder: Path) -> bytes:
    try:
        return read_inside(folder, PROMPTS)
    except OSError:
        return b""


def shards_of(folder: Path) -> Mapping[str, int]:
    """Returns the shards that a run folder's header lists; none for a run without shards.

    Raises:
        RunError: the header cannot be read.
    """
    if not os.path.lexists(folder / HEADER):
        return {}
    shards: Mapping[str, int] = read_header(folder).get("shards", {})
    return shards


def table_folders(folder: Path) -> list[Path]:
    """Returns the folders with the tables of a run: it itself, or the last attempts of its shards.

    Raises:
        RunError: a header cannot be read, or a shard is a link, or that of another run.
    """
    if not shards_of(folder):
        return [folder]
    run, places = read_header(folder)["run"], _begun(folder)
    for name, place in places.items():
        _check_place(place, {"run": run, "name": name})
    return list(places.values())


def is_done(folder: Path) -> bool:
    """Returns whether the folder of a shard's attempt has the mark of a finished shard."""
    return os.path.lexists(folder / DONE)


def last_attempt(folder: Path, name: str) -> tuple[Path, int]:
    """Returns the folder and number of a shard's last attempt; the first may not exist yet."""
    number = _last_numbers(folder).get(name, 1)
    return _attempt_folder(folder, name, number), number


def last_attempts(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Returns the folder of each shard's last attempt, as `last_attempt`, by one look at all."""
    numbers = _last_numbers(folder)
    return {name: _attempt_folder(folder, name, numbers.get(name, 1)) for name in names}


def next_attempt(folder: Path, name: str) -> tuple[Path, int]:
    """Starts a new attempt of a shard with copies of what the last one wrote.

    Returns:
        Its folder and its number.

    Raises:
        RunError: a file cannot be copied.
    """
    old, number = last_attempt(folder, name)
    number += 1
    draft = f"{SHARDS}/.{name}.{number}.{os.getpid()}"
    copy = Folder(path_inside(folder, draft))
    shutil.rmtree(copy.root, ignore_errors=True)
    paths = [HEADER, TABLE, DIGESTS]
    for part in _COPIED:
        paths += [f"{part}/{path.name}" for path in files_in(old, part) if not path.is_dir()]
    for path in paths:
        try:
            copy.write(path, read_inside(old, path))
        except FileNotFoundError:
            # Merged meanwhile by a late writer, or not there yet: its rows are generated again.
            continue
        except OSError as error:
            raise RunError(f"{old / path} cannot be read: {error.strerror}.") from error
    copy.sweep()
    copy.settle()
    new = _attempt_folder(folder, name, number)
    try:
        os.rename(copy.root, new)
    except OSError as error:
        raise RunError(f"{new} cannot be written: {error.strerror}. Start again.") from error
    return new, number


def _begun(folder: Path) -> dict[str, Path]:
    """Returns the folder of the last attempt of each shard that has begun, in their order."""
    numbers = _last_numbers(folder)
    return {
        name: _attempt_folder(folder, name, numbers[name])
        for name in shards_of(folder)
        if name in numbers
    }


def _check_place(place: Path, shard: Mapping[str, str]) -> None:
    """Raises RunError where the folder of a shard holds another one, or that of another run."""
    if not os.path.lexists(place / HEADER):
        # A process is about to begin it.
        return
    recipe = read_header(place)["about"].get("recipe")
    found = recipe.get("shard") if isinstance(recipe, dict) else None
    if found != shard:
        raise RunError(
            f"{place} must be shard {shard['name']} of run {shard['run']}, and is of another run "
            f"or place: {found!r:.200}. Put back the folder that belongs there, or delete it; the "
            "command that made the run then generates its rows again."
        )


def _last_numbers(folder: Path) -> dict[str, int]:
    """Returns the number of the last attempt of each shard that has begun."""
    last: dict[str, int] = {}
    for path in files_in(folder, SHARDS):
        if match := _ATTEMPT.fullmatch(path.name):
            name, number = match.group(1), int(match.group(2) or 1)
            last[name] = max(number, last.get(name, 0))
    return last


def _attempt_folder(folder: Path, name: str, number: int) -> Path:
    return path_inside(folder, f"{SHARDS}/{name}.{number}" if number > 1 else f"{SHARDS}/{name}")
