"""Whether a shard that has the mark of a finished one still has what it had then."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tts_verifier.errors import TTSError
from tts_verifier.log import read_finished, read_header
from tts_verifier.log.storage.files import files_in
from tts_verifier.parallel.shard_state import picked_in, results_of
from tts_verifier.runner.result import PromptResult
from tts_verifier.types import Prompt


def whole_results(
    folder: Path, done: dict[str, Any], prompts: Sequence[Prompt], shard: Mapping[str, str]
) -> list[PromptResult] | None:
    """Returns the results of a shard whose table is unchanged and has every file that it names.

    The files' content is checked when it is loaded. A shard that is not whole goes to a worker,
    which generates again what is missing.

    Args:
        folder: of the shard's last attempt.
        done: its mark.
        prompts: of the shard.
        shard: the run's id and the shard's name, as its header has them.

    Returns:
        Results with their picks; None if the shard is not whole.
    """
    try:
        header = read_header(folder)
        if header["about"]["recipe"]["shard"] != shard:
            # A worker says what differs.
            return None
        ids = picked_in(done)
        picks, named = read_finished(folder, header, ids)
        if ids - picks.keys() or _missing(folder, named):
            return None
        return results_of(done, prompts, picks)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TTSError):
        return None


def _missing(folder: Path, named: Iterable[str]) -> set[str]:
    """Returns the paths of some files of a run folder that are not there."""
    named = set(named)
    folders = {path.partition("/")[0] for path in named}
    there = {f"{name}/{os.path.basename(p)}" for name in folders for p in files_in(folder, name)}
    return named - there
