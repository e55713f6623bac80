"""Limits of scores, and moving or copying the pictures that are within them."""

from __future__ import annotations

import errno
import filecmp
import math
import os
import re
import shutil
import threading
import warnings
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

from tts_verifier.choice.objective import check_score_names
from tts_verifier.errors import InputError, RunError, RunWarning, readable_name
from tts_verifier.loading.regular_files import output_path
from tts_verifier.scoring.files import flush_folder
from tts_verifier.scoring.rows import OBJECTIVE, ScoreRow, value_of

_RESERVE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
_ESCAPED_BYTE: Final = re.compile(r"\\x([89a-f][0-9a-f])")
_LONGEST_NAME: Final = 255
"""Bytes of a file's name on the usual file systems."""


class Limit(NamedTuple):
    """The least and the most that a score may be."""

    name: str
    """A score's name, or `objective`."""
    least: float = -math.inf
    """Inclusive."""
    most: float = math.inf
    """Inclusive."""


def parse_limits(least: Sequence[str], most: Sequence[str]) -> list[Limit]:
    """Reads limits such as "overall=0.6".

    Raises:
        InputError: one of them is no name with a finite number, or no score can be within them.
    """
    lowest, highest = (list(map(_read_limit, texts)) for texts in (least, most))
    for name, low in lowest:
        for other, high in highest:
            if name == other and low > high:
                raise InputError(
                    f"--min must not exceed --max, got {name}={low:g} and {name}={high:g}, between "
                    "which there is no score."
                )
    limits = [Limit(name, least=value) for name, value in lowest]
    return limits + [Limit(name, most=value) for name, value in highest]


def _read_limit(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not name.strip() or not math.isfinite(value):
        raise InputError(f"A limit must be a score and a number, as overall=0.6, got {text!r}.")
    return name.strip(), value


def within(row: ScoreRow, limits: Sequence[Limit]) -> bool:
    """Returns whether all scores of a row are within their limits; NaN never is."""
    return all(limit.least <= value_of(row, limit.name) <= limit.most for limit in limits)


def check_names(names: Collection[str], known: Collection[str] | None) -> None:
    """Raises InputError for a name that is neither `objective` nor a score.

    Args:
        names: what a user wrote.
        known: names of scores; None = not known yet.
    """
    for name in names:
        if name != OBJECTIVE:
            check_score_names([name], known, "--min, --max and --sort", argument="limits")


class PictureFolder:
    """A folder that takes pictures, each under a name that is free; nothing is overwritten.

    Args:
        folder: made with the first picture; `~` is the home folder.
        copies: whether pictures stay where they are, too.
        dry_run: whether nothing is done, only said.

    Raises:
        InputError: there is a file of that name or on its way, or it may not be written.
    """

    def __init__(self, folder: Path, *, copies: bool = False, dry_run: bool = False) -> None:
        folder = output_path(folder)
        # Before anything is scored.
        nearest = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        if not nearest.is_dir():
            raise InputError(
                f"Pictures are moved or copied into a folder, {readable_name(nearest)} is a file "
                "or a link to nothing. Name another one."
            )
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise InputError(
                f"Pictures are moved or copied into a folder that may be written, "
                f"{readable_name(nearest)} may not. Name another one."
            )
        self.folder, self._copies, self._dry_run = folder, copies, dry_run
        self._given: set[int] = set()
        """Hashes of the paths that were given."""
        self._numbers: dict[str, int] = {}
        """Of names that were taken: the next number to try."""
        self._planned: set[str] = set()
        """Names that a dry run would take."""

    def take(self, picture: str) -> Path | None:
        """Moves or copies a picture, and returns where it is then.

        A picture that is moved is at every instant whole in one of the two places. A copy that
        is there already, byte by byte, is not made again.

        Returns:
            None if the picture stays as it is, because it was given before or is in the folder
            already; or, with a warning, because it is a link that would be moved, or is gone.

        Raises:
            RunError: the system refuses; earlier pictures are done.
        """
        picture = place_on_disk(picture)
        number = hash(os.path.abspath(picture))
        if number in self._given or self._holds(picture):
            return None
        self._given.add(number)
        if (reason := self._reason_to_stay(picture)) is not None:
            warnings.warn(f"{readable_name(picture)} {reason}.", RunWarning, stacklevel=2)
            return None
        try:
            if not self._dry_run:
                self.folder.mkdir(parents=True, exist_ok=True)
            return self._take(picture)
        except OSError as error:
            action = "copied" if self._copies else "moved"
            raise RunError(
                f"{readable_name(picture)} cannot be {action} to {readable_name(self.folder)}: "
                f"{error.strerror or error}. It is where it was; pictures before it were {action}, "
                "and the same command goes on."
            ) from error

    def _holds(self, picture: str) -> bool:
        parent = os.path.realpath(os.path.dirname(picture) or ".")
        return parent == os.path.realpath(self.folder)

    def _reason_to_stay(self, picture: str) -> str | None:
        if not os.path.isfile(picture):
            return "is no file any more and is left out"
        if os.path.islink(picture) and not self._copies:
            return "is a link and stays where it is; --copy-to copies what it leads to"
        return None

    def _take(self, picture: str) -> Path:
        goal, is_done = self._free_place(picture)
        if is_done or self._dry_run:
            return goal
        try:
            if not self._copies:
                try:
                    # The place is ours, so nothing else is replaced.
                    os.replace(picture, goal)
                    return goal
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
            self._copy(picture, goal)
        except BaseException:
            with suppress(OSError):
                if not goal.stat().st_size:
                    goal.unlink()
            raise
        if not self._copies:
            # The copy's name is on the disk before the picture goes.
            flush_folder(self.folder)
            try:
                os.unlink(picture)
            except OSError:
                # The picture stays, and the next try shall not make a second copy.
                goal.unlink()
                raise
        return goal

    def _copy(self, picture: str, goal: Path) -> None:
        # No part of the picture's name, which may have as many letters as a name can have.
        draft = goal.with_name(f".{os.getpid()}-{threading.get_ident()}.draft")
        try:
            with open(picture, "rb") as source, open(draft, "wb") as file:
                shutil.copyfileobj(source, file)
                file.flush()
                os.fsync(file.fileno())
            shutil.copystat(picture, draft)
            os.replace(draft, goal)
        finally:
            draft.unlink(missing_ok=True)

    def _free_place(self, picture: str) -> tuple[Path, bool]:
        """Reserves a path by an empty file; and returns whether the picture is there already."""
        name = os.path.basename(picture)
        stem, suffix = os.path.splitext(name)
        for number in count(self._numbers.get(name, 0)):
            goal = self.folder / (_name_with(stem, number, suffix) if number else name)
            if os.path.lexists(goal) or goal.name in self._planned:
                if self._copies and goal.is_file() and filecmp.cmp(picture, goal, shallow=False):
                    return goal, True
                self._numbers[name] = number + 1
                continue
            if self._dry_run:
                self._planned.add(goal.name)
                return goal, False
            with suppress(FileExistsError):
                os.close(os.open(goal, _RESERVE, 0o666))
                return goal, False
        raise AssertionError


def place_on_disk(shown: str) -> str:
    r"""Returns the path that a row shows, where bytes that are no UTF-8 are escapes as `\xff`."""
    raw = _ESCAPED_BYTE.sub(lambda match: chr(0xDC00 + int(match[1], 16)), shown)
    is_raw = not os.path.lexists(shown) and os.path.lexists(raw) and readable_name(raw) == shown
    return raw if is_raw else shown


def _name_with(stem: str, number: int, suffix: str) -> str:
    """Returns a file's name with a number, shorter where the file system has no room for it."""
    while len(os.fsencode(name := f"{stem}-{number}{suffix}")) > _LONGEST_NAME and stem:
        stem = stem[:-1]
    return name
