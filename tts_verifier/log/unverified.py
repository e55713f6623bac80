"""Notes on samples that are generated but not verified, so that a kill does not lose them.

Where a batch is verified while the next one is generated, several batches have images but no rows.
The file `waiting/ID.json` describes one such batch: for each trial id, what is known about the
sample before it is verified. The file is deleted once the rows are written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import RunError
from tts_verifier.log.storage.codecs import IMAGE, STATE
from tts_verifier.log.storage.files import Folder, files_in
from tts_verifier.types import Cost, Decoder, InFile, Job, Sample
from tts_verifier.types.paths import read_json_inside

NOTES: Final = "waiting"
_MOST_BYTES: Final = 2**26
_NO_COST: Final = Cost()
_MOST: Final = 2**53
"""Amounts in a note must be below this, and finite."""

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


def write_notes(folder: Folder, notes: Mapping[str, Note]) -> str:
    """Writes the notes on one batch to a file named after the first trial; returns its path.

    An earlier process may have left a note of that name on a larger batch; it stays.
    """
    first, count = next(iter(notes)), 0
    path = f"{NOTES}/{first}.json"
    while os.path.lexists(folder.root / path):
        count += 1
        path = f"{NOTES}/{first}.{count}.json"
    folder.write(path, json.dumps(notes).encode())
    return path


def read_notes(folder: Folder, set_aside: Callable[[Path, str], None]) -> dict[str, Note]:
    """Returns all notes by trial id, also those on trials with rows.

    Args:
        folder: the run folder.
        set_aside: called with the path of a file that holds no notes, and the reason.

    Raises:
        RunError: the folder of notes is a link or no folder.
    """
    notes: dict[str, Note] = {}
    for path in files_in(folder.root, NOTES):
        try:
            found = read_json_inside(folder.root, f"{NOTES}/{path.name}", most=_MOST_BYTES)
            notes |= {name: note for name, note in found.items() if isinstance(note, dict)}
        # Its samples will be generated again.
        except (RunError, OSError, ValueError, AttributeError, RecursionError) as error:
            set_aside(path, f"it holds no notes: {error!r:.200}")
    return notes


def sample_of_note(note: Note, job: Job, folder: Path) -> Sample | None:
    """Returns the sample that a note describes, None if its files are gone or changed."""
    try:
        image = _file_of_note(note["image"], folder, IMAGE)
        state = _file_of_note(note["state"], folder, STATE).load() if note["state"] else None
        cost, progress = Cost(**note["cost"]), note["progress"]
        if not 0 <= progress <= 1 or not all(map(_is_amount, asdict(cost).items())):
            return None
        return Sample(job, image.load(), progress, cost, state, stored=image)
    except (RunError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _is_amount(field: tuple[str, Any]) -> bool:
    """Returns whether a field of a cost can be written to the log."""
    name, value = field
    # The default of a field tells seconds from counts.
    whole = isinstance(getattr(_NO_COST, name), int)
    return type(value) in ((int,) if whole else (int, float)) and 0 <= value < _MOST


def _file_of_note(
    path_and_digest: Sequence[str], folder: Path, decoder: Decoder[Any]
) -> InFile[Any]:
    path, digest = path_and_digest
    return InFile(folder, path, digest, decoder)
