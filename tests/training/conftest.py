"""What the tests of several stages share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_training import VERIFIER_SIZES

from tts_verifier.training.miniature.verifier.checkpoint import write_random_checkpoint


@pytest.fixture(scope="session")
def doctor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    write_random_checkpoint(folder, VERIFIER_SIZES, seed=0)
    return folder
