"""Drawings that wait to be judged: noted beside the log, so that a kill does not lose them.

Where a batch is judged while the next is drawn, several are neither rows yet nor under way.
`waiting/NAME.json` is one such batch: by trial id what its row will say of the drawing. It
goes when its rows are written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import RunError
from tts_verifier.log.files import Folder, image_of, state_of, stored
from tts_verifier.types import Cost, Job, Sample, Stored

WAITING: Final = "waiting"

Note = Mapping[str, Any]
"""`progress`, `cost`, and for "image" and "state" the (path, SHA-256) of a file or None."""


def note(sample: Sample, files: Mapping[str, tuple[str, str]]) -> Note:
    """Returns what is to be known of a drawing whose files are written."""
    kept = {name: files.get(name) for name in ("image", "state")}
    return {"progress": sample.progress, "cost": asdict(sample.cost), **kept}


def write_notes(folder: Folder, notes: Mapping[str, Note]) -> None:
    """Notes a batch, under the name of its first trial."""
    path = _path(folder.root, next(iter(notes))).relative_to(folder.root)
    folder.write(path.as_posix(), json.dumps(notes).encode())


def forget_notes(folder: Path, ids: Iterable[str]) -> None:
    """Removes the notes on batches that begin with one of these trials."""
    for name in ids:
        _path(folder, name).unlink(missing_ok=True)


def read_notes(folder: Path) -> dict[str, Note]:
    """Returns the notes by trial id, also those on trials that were judged meanwhile."""
    found: dict[str, Note] = {}
    for path in sorted((folder / WAITING).glob("*.json")):
        try:
            found |= json.loads(path.read_bytes())
        except (OSError, ValueError, TypeError):
            # What cannot be read is drawn again.
            path.unlink()
    return found


def sample_of(about: Note, job: Job, folder: Path) -> Sample | None:
    """Returns the drawing that a note is about, None if its files are gone or changed."""
    try:
        image, state = _file(about["image"], folder, image_of), None
        if about["state"]:
            state = _file(about["state"], folder, state_of).load()
        cost = Cost(**about["cost"])
        return Sample(job, image.load(), about["progress"], cost, state, kept=image)
    except (RunError, KeyError, TypeError, ValueError):
        return None


def _file(place: Sequence[str], folder: Path, decode: Callable[[bytes], Any]) -> Stored[Any]:
    path, digest = place
    return stored(folder, path, digest, decode)


def _path(folder: Path, name: str) -> Path:
    return folder / WAITING / f"{name}.json"
