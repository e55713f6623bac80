"""A tiny flow-matching pipeline, and the keys of a quick run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines

from tts_verifier.training.common.run_folder import read_metrics


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 16 x 16 pixels, latents of 8 x 8."""
    folder = tmp_path_factory.mktemp("sd3")
    tiny_pipelines.sd3(folder / "tokenizer_files", channels=4).save_pretrained(folder / "pipe")
    return folder / "pipe"


@pytest.fixture
def keys(generator: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "init": str(generator),
        "output": str(tmp_path / "run"),
        "steps": 2,
        "prompts": 2,
        "group": 3,
        "captions": ["a cat", "a dog", "a hat", "a car"],
        "rewards": [{"verifier": "fake", "objective": {"overall": 1.0}}],
        "steps_drawn": 3,
        "max_sequence_length": 16,
        "deviation": "group",
        "learning_rate": 1e-2,
        "warm_up": 0.0,
        "times": 2,
        "trackers": [],
    }


def numbers(folder: Path) -> list[dict[str, float]]:
    """The metrics without what depends on the clock."""
    rows = read_metrics(folder)
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]
