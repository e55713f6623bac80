"""Records of RichHF-18K made by hand."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def fields(name: str, **changes: object) -> dict:
    """Returns the eight fields of a valid record, with changes; None removes a field."""
    grid = np.zeros((512, 512), np.uint8)
    grid[:100, :50] = 170
    values = {
        "filename": [f"test/{name}.png".encode()],
        "artifact_score": np.array([0.25], np.float32),
        "aesthetics_score": np.array([0.5], np.float32),
        "misalignment_score": np.array([0.75], np.float32),
        "overall_score": np.array([1.0], np.float32),
        "artifact_map": [png(grid)],
        "misalignment_map": [png(np.zeros((512, 512), np.uint8))],
        "prompt_misalignment_label": [b"1 0 1"],
    }
    return {k: v for k, v in (values | changes).items() if v is not None}
