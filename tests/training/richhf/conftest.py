from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tiny_richhf import fields

from tts_verifier.training.richhf.example import serialise_example
from tts_verifier.training.richhf.tfrecord import write_records


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of three rated pictures; the first record may be changed."""

    def write_folder(**changes: object) -> Path:
        names = ("a", "b", "c")
        records = [fields("a", **changes), fields("b"), fields("c")]
        write_records(tmp_path / "test.tfrecord", map(serialise_example, records))
        (tmp_path / "images").mkdir(exist_ok=True)
        for name in names:
            Image.new("RGB", (16, 8), "red").save(tmp_path / "images" / f"{name}.png")
        rows = [{"filename": f"{name}.png", "prompt": "a red ring"} for name in names]
        (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return tmp_path

    return write_folder
