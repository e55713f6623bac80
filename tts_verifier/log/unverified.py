"""Notes on samples that are generated but not verified, so that a kill does not lose them.

Where a batch is verified while the next one is generated, several batches have images but no rows.
The file `waiting/ID.json` describes one such batch: for each trial id, what is known about the
sample before it is verified. The file is deleted once the rows are written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import RunError
from tts_verifier.log.storage.codecs import IMAGE, STATE
from tts_verifier.log.storage.files import Folder
from tts_verifier.types import Cost, Decoder, InFile, Job, Sample

NOTES: Final = "waiting"

Note = Mapping[str, Any]
"""Holds `progress` and `cost`; under `image` and `state` the (path, SHA-256) of a file, or None."""


def note_of(sample: Sample, files: Mapping[str, tuple[str, str]]) -> Note:
    """Returns the note on a sample.

    Args:
        sample: a sample that is not verified yet.
        files: "image" and, if it was written, "state" -> (path, SHA-256) of the file.
    """
    columns = {name: files.get(name) for name in ("image", "state")}
    return {"progress": sample.progress, "cost": asdict(sample.cost), **columns}


def write_notes(folder: Folder, notes: Mapping[str, Note]) -> None:
    """Writes the notes on one batch to a file named after the first trial."""
    path = _note_file(folder.root, next(iter(notes))).relative_to(folder.root)
    folder.write(path.as_posix(), json.dumps(notes).encode())


def delete_notes(folder: Path, ids: Iterable[str]) -> None:
    """Deletes the files of notes that are named after these trials."""
    for trial_id in ids:
        _note_file(folder, trial_id).unlink(missing_ok=True)


def read_notes(folder: Path) -> dict[str, Note]:
    """Returns all notes by trial id, also those on trials with rows; deletes unreadable files."""
    notes: dict[str, Note] = {}
    for path in sorted((folder / NOTES).glob("*.json")):
        try:
            notes |= json.loads(path.read_bytes())
        except (OSError, ValueError, TypeError):
            # Its samples will be generated again.
            path.unlink()
    return notes


def sample_of_note(note: Note, job: Job, folder: Path) -> Sample | None:
    """Returns the sample that a note describes, None if its files are gone or changed."""
    try:
        image = _file_of_note(note["image"], folder, IMAGE)
        state = _file_of_note(note["state"], folder, STATE).load() if note["state"] else None
        cost = Cost(**note["cost"])
        return Sample(job, image.load(), note["progress"], cost, state, stored=image)
    except (RunError, KeyError, TypeError, ValueError):
        return None


def _file_of_note(
    path_and_digest: Sequence[str], folder: Path, decoder: Decoder[Any]
) -> InFile[Any]:
    path, digest = path_and_digest
    return InFile(folder, path, digest, decoder)


def _note_file(folder: Path, trial_id: str) -> Path:
    return folder / NOTES / f"{trial_id}.json"
