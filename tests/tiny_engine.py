"""A tiny random ImageDoctor whose replies differ, and requests to it."""

from __future__ import annotations

import numpy as np

from tts_verifier.verifiers.imagedoctor.generation import GenerationRequest
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel

GRIDS = [(8, 8), (4, 6), (8, 8), (10, 2), (8, 8)]
EOS = 258


def requests(model: ImageDoctorModel) -> list[GenerationRequest]:
    made = []
    for i, (h, w) in enumerate(GRIDS):
        rng = np.random.default_rng(i)
        before, after = rng.integers(0, 256, 5 + i).tolist(), rng.integers(0, 256, 9 * i + 3)
        ids = [*before, *[model.config.image_token_id] * (h * w // 4), *after.tolist()]
        made.append(
            GenerationRequest(ids, rng.standard_normal((h * w, 1176)).astype(np.float32), (h, w))
        )
    return made
