"""Writes a page or a chart as a whole file or not at all, and never through a link."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from tts_verifier.errors import RunError


def write_whole(path: Path, text: str, option: str) -> None:
    """Writes a text file in one step; a link at this path is replaced, not followed.

    Args:
        path: a browser may be reading the file that it replaces.
        text: lone surrogates, which no file can hold, become "?".
        option: the command's option that names another path.

    Raises:
        RunError: the file cannot be written.
    """
    draft = path.with_name(f".{os.getpid()}.{secrets.token_hex(8)}.draft")
    try:
        # "x" never opens what is there already. A run folder from somebody else may hold links.
        with open(draft, "x", encoding="utf-8", errors="replace") as file:
            file.write(text)
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}. Give another with {option}."
        ) from error
