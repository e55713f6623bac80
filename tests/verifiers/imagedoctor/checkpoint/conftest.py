from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_imagedoctor import example


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder that tests only read."""
    folder = tmp_path_factory.mktemp("tiny")
    example().make(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A checkpoint folder that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "copy"))
