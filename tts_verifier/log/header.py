"""The header of a run folder: what the run is, and the environment that it ran in."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import RunError
from tts_verifier.log.environment import environment
from tts_verifier.log.storage.binding import Binding
from tts_verifier.log.storage.files import Folder, is_digest
from tts_verifier.log.storage.tables import TABLE, parts_of, table_digests
from tts_verifier.types.paths import path_inside, read_json_inside

SCHEMA_VERSION: Final = 3
"""Older versions are read, and continued as this one; `SCHEMA.md` says what changed."""
HEADER: Final = "header.json"
_MOST_BYTES: Final = 2**28
_ENTRY_TYPES: Final[Mapping[str, type]] = {
    "about": dict,
    "sessions": list,
    "extended": list,
    "versions": dict,
    "run": str,
    "table": list,
    "unbound": list,
    "shards": dict,
}
_RUN_ID: Final = re.compile("[0-9a-f]{32}")
_SHARD_NAME: Final = re.compile("[0-9]{5,9}")


def read_header(folder: Path) -> dict[str, Any]:
    """Returns the header of a run folder.

    Raises:
        RunError: it is missing or unreadable, or a newer version wrote it.
    """
    path = folder / HEADER
    try:
        header = read_json_inside(folder, HEADER, most=_MOST_BYTES)
        version = _checked_version(header)
    except FileNotFoundError as error:
        raise RunError(
            f"{path} must be a run's header, but it does not exist. Give the folder that a run "
            "has written: its `output`."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path} must be a run's header: {error!r:.300}.") from error
    if version not in range(1, SCHEMA_VERSION + 1):
        raise RunError(
            f"{folder} has log version {version}; this tts_verifier reads versions 1 to "
            f"{SCHEMA_VERSION}. Use the version that wrote it, or another folder."
        )
    if version == 1:
        header["sessions"] = [_upgraded_session(entry) for entry in header.get("sessions", [])]
        header["about"] = _upgraded_about(header["about"])
    if version < 3:
        _drop_batch_sizes(header["about"])
    return header  # type: ignore[no-any-return]


def read_binding(folder: Path) -> Binding:
    """Returns what binds the tables of a run folder to their run.

    Raises:
        RunError: there are tables but no readable header.
    """
    if not os.path.lexists(folder / HEADER) and not _has_tables(folder):
        return Binding()
    return binding_of(folder, read_header(folder))


def write_header(
    folder: Folder,
    about: Mapping[str, Any],
    *,
    grows: Collection[str] = (),
    shards: Mapping[str, int] | None = None,
) -> Binding:
    """Writes the header of a new run folder, or checks that an existing one is the same run's.

    Args:
        folder: the run folder.
        about: JSON values that identify the run; those of the folder must be equal.
        grows: names of the strategy's arguments that may be larger than in the folder. The
            header then holds the new values, and keeps the old ones in `extended`.
        shards: name -> number of prompts, for a new folder; None = a run without shards.

    Returns:
        What binds tables to the run.

    Raises:
        RunError: the folder belongs to another run, or cannot be read or written.
    """
    root = folder.root
    # As it would be read back, for the comparison: tuples become lists, and keys become text.
    about = json.loads(json.dumps(about))
    if os.path.lexists(root / HEADER):
        header = read_header(root)
        before = header["about"]
        _check_kind(root, header, shards)
        if before == about and header["schema_version"] == SCHEMA_VERSION:
            return binding_of(root, header)
        if before != about:
            _check_same_run(root, before, about, grows=grows)
            header |= {"about": about, "extended": [*header.get("extended", []), before]}
        if header["schema_version"] < SCHEMA_VERSION:
            # From now on the rows are written in this version's schema.
            header |= {"schema_version": SCHEMA_VERSION, "run": uuid.uuid4().hex, **_adopted(root)}
    elif _has_tables(root):
        raise _headless(root)
    else:
        run = {"run": uuid.uuid4().hex, "table": []}
        header = {"schema_version": SCHEMA_VERSION, "about": about, **environment(), **run}
        header |= {"shards": dict(shards)} if shards else {}
    _write(folder, header)
    return binding_of(root, header)


def note_session(folder: Folder, session: Mapping[str, Any]) -> None:
    """Adds an entry about the process that finishes the run to `sessions` of the header."""
    header = read_header(folder.root)
    header |= {"sessions": [*header.get("sessions", []), session]}
    _write(folder, header)


def note_table(folder: Folder, digests: Sequence[str]) -> Binding:
    """Writes the digests that the finished table may have; returns the new binding."""
    header = read_header(folder.root) | {"table": list(digests)}
    _write(folder, header)
    return binding_of(folder.root, header)


def _write(folder: Folder, header: Mapping[str, Any]) -> None:
    folder.write(HEADER, json.dumps(header, indent=2, ensure_ascii=False).encode())
    folder.settle()


def _has_tables(folder: Path) -> bool:
    return bool(parts_of(folder)) or os.path.lexists(folder / TABLE)


def _headless(folder: Path) -> RunError:
    return RunError(
        f"{folder} holds the rows of a run but no {HEADER} that says which run. Choose another "
        "output folder."
    )


def binding_of(folder: Path, header: Mapping[str, Any]) -> Binding:
    """Returns what a header, from `read_header`, says of the tables of its folder."""
    if header["schema_version"] < 3:
        return Binding(table=tuple(table_digests(folder)))
    return Binding(header["run"], tuple(header["table"]), frozenset(header.get("unbound", [])))


def _adopted(folder: Path) -> dict[str, list[str]]:
    """Returns the keys that bind the tables of an older version, which name no run, to it."""
    paths = [part.path for part in parts_of(folder) if not part.digest]
    digests = [part.digest for part in parts_of(folder) if part.digest]
    table = table_digests(folder)
    if os.path.lexists(folder / TABLE) and not table:
        paths.append(folder / TABLE)
    found = [_digest_of_file(folder, path) for path in paths]
    if paths and paths[-1] == folder / TABLE:
        table = found[-1:]
    return {"table": table, "unbound": [d[:16] for d in [*digests, *found, *table]]}


def _digest_of_file(folder: Path, path: Path) -> str:
    try:
        with open(path_inside(folder, path.relative_to(folder).as_posix()), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}. Move it away.") from error


def _checked_version(header: Any) -> int:
    """Returns the schema's version; raises ValueError, KeyError or TypeError for no header."""
    version = header["schema_version"]
    if type(version) is not int:
        raise ValueError(f"schema_version is {version!r:.80}")
    header["about"]
    for name, kind in _ENTRY_TYPES.items():
        if name in header and not isinstance(header[name], kind):
            raise ValueError(f"{name} is {type(header[name]).__name__}, not {kind.__name__}")
    for name in ("sessions", "extended"):
        if not all(isinstance(entry, dict) for entry in header.get(name, [])):
            raise ValueError(f"{name} must hold objects")
    if version == SCHEMA_VERSION:
        if not _RUN_ID.fullmatch(header["run"]) or not all(map(is_digest, header["table"])):
            raise ValueError("run and table must be an id and digests")
        if not all(isinstance(entry, str) for entry in header.get("unbound", [])):
            raise ValueError("unbound must hold digests")
        for name, size in header.get("shards", {}).items():
            if not _SHARD_NAME.fullmatch(name) or type(size) is not int or size < 1:
                raise ValueError("shards must hold names and numbers of prompts")
    return version


def _check_same_run(
    folder: Path, before: Mapping[str, Any], about: Mapping[str, Any], *, grows: Collection[str]
) -> None:
    """Raises RunError where the folder's `about` differs in more than numbers that may grow."""
    old, new = dict(_flat(before)), dict(_flat(about))
    # A recipe's run has its strategy's arguments twice: as built, and as the recipe states them.
    names = ["looks", "ties", *(f"strategy.{name}" for name in grows)]
    may_grow = {f"{place}{name}" for place in ("", "recipe.") for name in names}
    differ = [
        key
        for key in [*old, *(key for key in new if key not in old)]
        if old.get(key) != new.get(key)
    ]
    if not all(key in may_grow and _grew(key, old.get(key), new.get(key)) for key in differ):
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


def _drop_batch_sizes(about: dict[str, Any]) -> None:
    """Removes ImageDoctor's batch size, which decides no verdict and was measured by memory."""
    for role in ("verifier", "judge"):
        part = about.get(role)
        if isinstance(part, Mapping) and "answer_template" in part:
            about[role] = {key: value for key, value in part.items() if key != "batch_size"}


def _upgraded_session(session: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an entry of `sessions` of schema 1 with the names of schema 2."""
    sides = {"draw": "generate", "judge": "verify"}
    return {
        key: {sides.get(name, name): item for name, item in value.items()}
        if isinstance(value, Mapping)
        else value
        for key, value in session.items()
    }


def _check_kind(folder: Path, header: Mapping[str, Any], shards: object) -> None:
    """Raises RunError where only one of a folder and its new process has shards."""
    if bool(header.get("shards")) != bool(shards):
        kind = "in shards, as --parallel makes it" if not shards else "of a single process"
        remedy = "Continue it with --parallel" if not shards else "Continue it without parallel"
        raise RunError(f"{folder} holds a run {kind}. {remedy}, or choose another output folder.")


def _grew(key: str, old: Any, new: Any) -> bool:
    # A run without looks has no such key.
    old = 0 if old is None and key.endswith("looks") else old
    return isinstance(old, int) and isinstance(new, int) and new > old


def _flat(value: Any, key: str = "") -> Iterable[tuple[str, Any]]:
    """Yields nested JSON values under dotted keys, such as "strategy.n"."""
    if not isinstance(value, Mapping):
        yield key, value
        return
    for name, item in value.items():
        yield from _flat(item, f"{key}.{name}" if key else name)
