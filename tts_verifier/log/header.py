"""The header of a run folder: what the run is, and the environment that it ran in."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from tts_verifier.environment import environment
from tts_verifier.errors import RunError
from tts_verifier.log.storage.files import Folder
from tts_verifier.log.storage.tables import TABLE, parts_of

SCHEMA_VERSION: Final = 2
"""Version 1 had other names for some columns; it is read and continued as version 2."""
HEADER: Final = "header.json"


def read_header(folder: Path) -> dict[str, Any]:
    """Returns the header of a run folder.

    Raises:
        RunError: it is missing or unreadable, or a newer version wrote it.
    """
    try:
        header: dict[str, Any] = json.loads((folder / HEADER).read_bytes())
        version = header["schema_version"]
        header["about"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder / HEADER} must be a run's header: {error!r}.") from error
    if version not in range(1, SCHEMA_VERSION + 1):
        raise RunError(
            f"{folder} has log version {version}; this tts_verifier reads versions 1 to "
            f"{SCHEMA_VERSION}. Use the version that wrote it, or another folder."
        )
    if version == 1:
        header["sessions"] = [_upgraded_session(entry) for entry in header.get("sessions", [])]
        header["about"] = _upgraded_about(header["about"])
    return header


def write_header(folder: Folder, about: Mapping[str, Any], *, grows: Collection[str] = ()) -> None:
    """Writes the header of a new run folder, or checks that an existing one is the same run's.

    Args:
        folder: the run folder.
        about: JSON values that identify the run; those of the folder must be equal.
        grows: names of the strategy's arguments that may be larger than in the folder. The
            header then holds the new values, and keeps the old ones in `extended`.

    Raises:
        RunError: the folder belongs to another run, or cannot be read or written.
    """
    root = folder.root
    # As it would be read back, for the comparison: tuples become lists, and keys become text.
    about = json.loads(json.dumps(about))
    if (root / HEADER).exists():
        header = read_header(root)
        before = header["about"]
        if before == about and header["schema_version"] == SCHEMA_VERSION:
            return
        # From now on the rows are written in this version's schema.
        header["schema_version"] = SCHEMA_VERSION
        if before != about:
            _check_same(root, before, about, grows=grows)
            header |= {"about": about, "extended": [*header.get("extended", []), before]}
    elif parts_of(root) or (root / TABLE).exists():
        raise RunError(
            f"{root} holds the rows of a run but no {HEADER} that says which run. Choose another "
            "output folder."
        )
    else:
        header = {"schema_version": SCHEMA_VERSION, "about": about, **environment()}
    folder.write(HEADER, json.dumps(header, indent=2, ensure_ascii=False).encode())
    folder.settle()


def note_session(folder: Folder, session: Mapping[str, Any]) -> None:
    """Adds an entry about the process that finishes the run to `sessions` of the header."""
    header = read_header(folder.root)
    header |= {"sessions": [*header.get("sessions", []), session]}
    folder.write(HEADER, json.dumps(header, indent=2, ensure_ascii=False).encode())
    folder.settle()


def _check_same(
    folder: Path, before: Mapping[str, Any], about: Mapping[str, Any], *, grows: Collection[str]
) -> None:
    """Raises RunError where the folder's `about` differs in more than numbers that may grow."""
    old, new = dict(_flat(before)), dict(_flat(about))
    # A recipe's run has its strategy's arguments twice: as built, and as the recipe states them.
    may_grow = {f"{place}strategy.{name}" for place in ("", "recipe.") for name in grows}
    differ = [
        key
        for key in [*old, *(key for key in new if key not in old)]
        if old.get(key) != new.get(key)
    ]
    if not all(key in may_grow and _grew(old.get(key), new.get(key)) for key in differ):
        lines = "".join(
            f"\n  {key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} here"
            for key in differ
        )
        raise RunError(
            f"{folder} belongs to another run; these values differ:{lines}\n"
            "Choose another output folder, or give that run's recipe to continue it."
        )


def _upgraded_about(about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what schema 1 says of a run under today's names of ImageDoctor's options.

    The options stand twice: as the parts give them, and as the recipe does.
    """

    def renamed(parts: Mapping[str, Any]) -> dict[str, Any]:
        return {
            role: {{"skeleton": "answer_template"}.get(k, k): v for k, v in part.items()}
            if role in ("verifier", "judge") and isinstance(part, Mapping)
            else part
            for role, part in parts.items()
        }

    upgraded = renamed(about)
    if isinstance(about.get("recipe"), Mapping):
        upgraded["recipe"] = renamed(about["recipe"])
    return upgraded


def _upgraded_session(session: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an entry of `sessions` of schema 1 with the names of schema 2."""
    sides = {"draw": "generate", "judge": "verify"}
    return {
        key: {sides.get(name, name): item for name, item in value.items()}
        if isinstance(value, Mapping)
        else value
        for key, value in session.items()
    }


def _grew(old: Any, new: Any) -> bool:
    return isinstance(old, int) and isinstance(new, int) and new > old


def _flat(value: Any, key: str = "") -> Iterable[tuple[str, Any]]:
    """Yields nested JSON values under dotted keys, such as "strategy.n"."""
    if not isinstance(value, Mapping):
        yield key, value
        return
    for name, item in value.items():
        yield from _flat(item, f"{key}.{name}" if key else name)
