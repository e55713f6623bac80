"""The file that says with which settings a folder was begun."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tts_verifier.errors import RunError
from tts_verifier.types.paths import read_json_inside


def claim_folder(path: Path, settings: Mapping[str, Any], free: Collection[str] = ()) -> None:
    """Notes settings in a new folder, or compares them with those of an old one.

    Args:
        path: the file; its folder is made.
        settings: whatever decides the content, as JSON values.
        free: names that decide nothing, which an older file may have all the same.

    Raises:
        RunError: the folder was begun with other settings, has other files or a link, or cannot
            be used.
    """
    if check_folder(path, settings, free):
        return
    draft = path.with_suffix(".draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise RunError(f"{path} cannot be used: {error}") from error


def check_folder(path: Path, settings: Mapping[str, Any], free: Collection[str] = ()) -> bool:
    """Checks what `claim_folder` does, before anything is loaded, and makes no folder.

    Returns:
        Whether the folder was begun.

    Raises:
        RunError: as for `claim_folder`.
    """
    folder, draft = path.parent, path.with_suffix(".draft")
    here = json.loads(json.dumps(settings))
    try:
        if os.path.lexists(path):
            _compare(folder, read_json_inside(folder, path.name), here, free)
            # A continued run writes and deletes below the folder, which may be a stranger's.
            _refuse_links(folder)
            return True
        # A kill may have left the draft.
        if folder.exists() and any(other != draft for other in folder.iterdir()):
            raise RunError(
                f"{folder} must be new, empty or begun by this command, and has other files. Give "
                "another output."
            )
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be used: {error}") from error
    return False


def _refuse_links(folder: Path) -> None:
    for place, folders, files in os.walk(folder):
        if link := next((n for n in folders + files if os.path.islink(f"{place}/{n}")), None):
            raise RunError(
                f"A folder that a command goes on in must hold files, not links; {place}/{link} "
                "is a link. Put the files in its place, or delete it."
            )


def _compare(folder: Path, there: Any, here: Mapping[str, Any], free: Collection[str]) -> None:
    if not isinstance(there, dict):
        raise ValueError("it must hold the settings by name")
    names = [n for n in {**there, **here} if n not in free and there.get(n) != here.get(n)]
    if names:
        listed = "; ".join(f"{n} is {there.get(n)!r} there, {here.get(n)!r} here" for n in names)
        raise RunError(
            f"{folder} was begun with other settings: {listed}. Give another output, or remove "
            "the folder."
        )
