"""Writes a page, a chart or an image as a whole file or not at all, and never through a link."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from tts_verifier.errors import RunError


def write_whole(path: Path, content: str | bytes, option: str) -> None:
    """Writes a file in one step; a link at this path is replaced, not followed.

    Args:
        path: a browser may be reading the file that it replaces.
        content: bytes, or text; lone surrogates, which no file can hold, become "?".
        option: the command's option that names another path.

    Raises:
        RunError: the file cannot be written.
    """
    draft = path.with_name(f".{os.getpid()}.{secrets.token_hex(8)}.draft")
    try:
        # "x" never opens what is there already. A run folder from somebody else may hold links.
        with open(draft, "xb") as file:
            file.write(
                content if isinstance(content, bytes) else content.encode("utf-8", "replace")
            )
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}. Give another with {option}."
        ) from error
