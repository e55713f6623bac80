"""Requests to a tiny random ImageDoctor whose replies differ, and a stand-in for its choices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.requests import GenerationRequest

GRIDS = [(8, 8), (4, 6), (8, 8), (10, 2), (8, 8)]
EOS = 258


def requests(model: ImageDoctorModel) -> list[GenerationRequest]:
    """Returns five requests with images and prompts of different sizes."""
    built = []
    for i, (h, w) in enumerate(GRIDS):
        rng = np.random.default_rng(i)
        before, after = rng.integers(0, 256, 5 + i).tolist(), rng.integers(0, 256, 9 * i + 3)
        ids = [*before, *[model.config.image_token_id] * (h * w // 4), *after.tolist()]
        patches = rng.standard_normal((h * w, 1176)).astype(np.float32)
        built.append(GenerationRequest(ids, patches, (h, w)))
    return built


class ForcedTokens:
    """Chooses given completions token by token instead of the model's choice; keeps the logits.

    Works for as many sequences as there are completions, in their order; a completion that is
    over repeats its last token. It counts on the host, so the engine must not capture it.
    """

    def __init__(self, completions: Sequence[Tensor]) -> None:
        self._completions = completions
        self._logits: list[Tensor] = []

    def __call__(self, scores: Tensor) -> Tensor:
        at = len(self._logits)
        self._logits.append(scores.clone())
        return torch.stack([ids[min(at, len(ids) - 1)] for ids in self._completions])

    def logits(self) -> Tensor:
        """Returns the logits before each token, (sequences, steps, vocabulary)."""
        return torch.stack(self._logits, dim=1)
