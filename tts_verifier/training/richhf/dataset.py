"""Reads a folder of RichHF-18K, or of its miniature, and joins ratings, pictures and prompts.

    DATA/test.tfrecord              or DATA/test-00000-of-00004.tfrecord and its kind
    DATA/images/…/<uid>.png         any image format, in any folder below
    DATA/prompts.jsonl              or prompts.parquet, or a folder prompts/ of such files

RichHF-18K has the first only. Its pictures and prompts are those of Pick-a-Pic v1; a row of the
prompts has a `filename` and a `prompt`. Everything is joined by uid, the stem of the file's name.
A picture or a prompt that is not there is left out, with a warning that counts and names them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tts_verifier.errors import InputError, RunWarning
from tts_verifier.evaluation.rated import RatedPicture
from tts_verifier.images import open_image, picture_files
from tts_verifier.loading.regular_files import open_regular
from tts_verifier.tables import TABLE_SUFFIXES, read_table
from tts_verifier.training.richhf.fields import Rating, parse_rating, prompt_words, uid_of
from tts_verifier.training.richhf.tfrecord import read_records

PROMPT_KEY: Final = "tts-verifier prompt"
"""The text chunk of a PNG file that holds the prompt of the picture."""
_TEXT_TABLES: Final = tuple(suffix for suffix in TABLE_SUFFIXES if suffix != ".txt")
_NAMED: Final = 8
"""Most missing files that a message names."""
_SHARD: Final = re.compile(r"-(\d{5})-of-(\d{5})\.tfrecord")


@dataclass(frozen=True, slots=True, eq=False)
class RatedSplit:
    """The pictures of a split that are there, and the names of those that are not."""

    pictures: tuple[RatedPicture, ...]
    """In the order of the records."""
    missing_pictures: tuple[str, ...]
    """File names of the records without a picture."""
    missing_prompts: tuple[str, ...]
    """File names of the records with a picture but without a prompt."""


def read_split(
    data: Path,
    split: str = "test",
    *,
    images: Path | None = None,
    prompts: Path | None = None,
    limit: int | None = None,
) -> RatedSplit:
    """Reads the ratings of a split with their pictures and prompts.

    Pictures and maps are decoded when they are used. Missing ones are a `RunWarning`.

    Args:
        data: the folder, or one .tfrecord file, whose folder then has the rest.
        split: the first part of the files' names; not used for a single file.
        images: the folder of the pictures; None = `images` of the folder.
        prompts: the file or folder of the prompts; None = as above.
        limit: take only so many pictures, the first ones.

    Raises:
        InputError: a file is missing, changed or not in the format; a picture belongs to another
            prompt; or no picture is left.
    """
    if not data.exists():
        raise InputError(
            "Ratings are a folder in the format of RichHF-18K, or one .tfrecord file; there is "
            f"none at {data}. tts-train miniature-richhf makes one."
        )
    folder = data if data.is_dir() else data.parent
    where = images or folder / "images"
    files, texts = _picture_files(where), read_prompts_by_uid(prompts or _prompts_of(folder))
    found: list[RatedPicture] = []
    no_picture: list[str] = []
    no_prompt: list[str] = []
    total = 0
    for rating in read_ratings(data, split):
        total += 1
        if rating.uid not in files:
            no_picture.append(rating.filename)
        elif rating.uid not in texts:
            no_prompt.append(rating.filename)
        elif limit is None or len(found) < limit:
            found.append(_joined(rating, files[rating.uid], texts[rating.uid]))
    for names, what in ((no_picture, f"pictures in {where}"), (no_prompt, "prompts")):
        if names and total > len(names):
            warnings.warn(_missing_text(names, total, what), RunWarning, stacklevel=2)
    if not found:
        raise InputError(
            f"{data}: {split} needs pictures with prompts, and has none: "
            f"{_missing_text(no_picture or no_prompt, total, f'pictures in {where}, or prompts')}"
        )
    return RatedSplit(tuple(found), tuple(no_picture), tuple(no_prompt))


def read_ratings(data: Path, split: str = "test") -> Iterator[Rating]:
    """Yields the ratings of a split, or of one file, without pictures and prompts.

    Raises:
        InputError: a file is missing, changed or not in the format, or a picture occurs twice.
    """
    seen: set[str] = set()
    for path in record_files(data, split):
        for number, record in enumerate(read_records(path)):
            try:
                rating = parse_rating(record)
            except InputError as error:
                raise InputError(f"{path}: record {number}: {error}") from error
            if rating.uid in seen:
                raise InputError(
                    f"{path}: record {number}: {rating.filename} occurs twice in {split}."
                )
            seen.add(rating.uid)
            yield rating


def record_files(data: Path, split: str) -> list[Path]:
    """Returns the files of a split in order: one, or all shards.

    Raises:
        InputError: there is none, or a shard is missing.
    """
    if not data.is_dir():
        return [data]
    whole = data / f"{split}.tfrecord"
    if whole.is_file():
        return [whole]
    shards = {p.name: p for p in data.glob(f"{split}-*.tfrecord") if _SHARD.search(p.name)}
    if not shards:
        splits = sorted({re.split(r"-\d{5}-of|\.", p.name)[0] for p in data.glob("*.tfrecord")})
        raise InputError(
            f"{data} has no {split}.tfrecord and no shards of it. It has the splits: "
            f"{', '.join(splits) or 'none'}."
        )
    count = next(iter(shards)).rpartition("-of-")[2].partition(".")[0]
    wanted = [f"{split}-{i:05d}-of-{count}.tfrecord" for i in range(int(count))]
    missing = sorted(set(wanted) ^ set(shards))
    if missing:
        raise InputError(
            f"{data}: the split {split} must have its {len(wanted)} shards and nothing else; "
            f"{len(missing)} are missing or of another set: {', '.join(missing[:_NAMED])}. Make "
            "or copy it again."
        )
    return [shards[name] for name in wanted]


def read_prompts_by_uid(path: Path) -> dict[str, str]:
    """Reads prompts: a table, or a folder of tables.

    Raises:
        InputError: there is none, a row has no `filename` or `prompt`, or a picture has two
            different prompts.
    """
    found: dict[str, str] = {}
    for file in prompt_files(path):
        for name, prompt, place in read_texts(file, "prompt"):
            if found.setdefault(uid_of(name), prompt) != prompt:
                raise InputError(
                    f"{place}: {name} has two prompts, {found[uid_of(name)]!r} and {prompt!r}. "
                    "Keep the one that it was generated for."
                )
    return found


def read_texts(path: Path, column: str) -> Iterator[tuple[str, str, str]]:
    """Yields file name, text and place of each row of a table.

    Args:
        path: of the table.
        column: which has the texts; `filename` has the names.

    Raises:
        InputError: the file cannot be read, or a row has no name or text.
    """
    for row in read_table(path):
        values = row.value if isinstance(row.value, Mapping) else {}
        name, text = values.get("filename"), values.get(column)
        if not isinstance(name, str) or not isinstance(text, str):
            raise InputError(
                f"{row.place}: a row needs a 'filename' and its {column!r}, both texts; got "
                f"{row.value!r:.80}."
            )
        yield name, text, row.place


def prompt_files(path: Path) -> list[Path]:
    """Returns the tables of a folder, or the one table.

    Raises:
        InputError: there is none.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [f for f in files if f.suffix.lower() in _TEXT_TABLES and f.is_file()]
    files = [f for f in files if not f.name.startswith(".")]
    if not files:
        raise InputError(
            f"Prompts are a table ({', '.join(_TEXT_TABLES)}), or a folder of them, with a "
            f"filename and a prompt in each row; there is none at {path}."
        )
    return files


def _prompts_of(folder: Path) -> Path:
    named = [folder / name for name in ("prompts.jsonl", "prompts.parquet")]
    return next((path for path in named if path.is_file()), folder / "prompts")


def _picture_files(folder: Path) -> dict[str, Path]:
    """Returns uid -> file of all pictures below a folder, none if there is no folder."""
    files: dict[str, Path] = {}
    for path in map(Path, picture_files(str(folder)).values() if folder.is_dir() else ()):
        if files.setdefault(path.stem, path) != path:
            raise InputError(
                f"Pictures are found by their names: {files[path.stem]} and {path} have the same. "
                "Remove one."
            )
    return files


def _joined(rating: Rating, path: Path, prompt: str) -> RatedPicture:
    words = prompt_words(prompt)
    if len(words) != len(rating.aligned):
        raise InputError(
            f"{rating.filename} must have the prompt that its words were rated for: the rating "
            f"has {len(rating.aligned)} words and {prompt!r} has {len(words)}. It is the prompt "
            "of another picture."
        )
    own = _prompt_inside(path)
    if own is not None and own != prompt:
        raise InputError(
            f"{path} is a picture of another prompt: the file says {own!r}, the prompts say "
            f"{prompt!r}. Put the right picture there."
        )
    return RatedPicture(rating.filename, str(path), prompt, rating.scores, rating.maps)


def _prompt_inside(path: Path) -> str | None:
    try:
        with open_regular(path) as file, open_image(file) as image:
            text = image.info.get(PROMPT_KEY)
    # Decoders raise almost anything on a damaged file.
    except Exception as error:
        raise InputError(f"{path} must be a picture, and cannot be read: {error}") from error
    return text if isinstance(text, str) else None


def _missing_text(names: list[str], total: int, what: str) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        f"{len(names)} of {total} {what} are missing and left out: "
        f"{', '.join(names[:_NAMED])}{more}."
    )
