"""Downloads checkpoints from the hub: their weights and plain files, no code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tts_verifier.errors import CheckpointError

HUB_ID: Final = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""What the name of a checkpoint on the hub looks like."""


def download(
    repo: str, patterns: Sequence[str], *, revision: str | None = None, offline: bool = False
) -> Path:
    """Returns the folder of a checkpoint of the hub, which is downloaded if it is not cached.

    Args:
        repo: such as "GYX97/ImageDoctor".
        patterns: of the files that are fetched. Name no pickles and no Python files: these could
            run code.
        revision: branch, tag or commit.
        offline: True looks only into the cache.

    Raises:
        CheckpointError: there is no such checkpoint, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=list(patterns), local_files_only=offline
        )
    except Exception as error:  # the hub's errors share no base class
        fault = "is not in the offline cache" if offline else "cannot be fetched from the hub"
        raise CheckpointError(
            f"{repo} (revision {revision or 'main'}) {fault}: {type(error).__name__}. Check the "
            "name and the network, or give a local folder."
        ) from error
    return Path(folder)
