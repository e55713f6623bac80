"""Captions for the generator, and its pictures of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from tts_verifier.generators.diffusers.loading import BUNDLED_CALL
from tts_verifier.shapes.captions import Split, random_specs
from tts_verifier.shapes.grammar import random_phrase

BATCH: Final = 256
GUIDANCE: Final = float(BUNDLED_CALL["guidance_scale"])


def sample_captions(count: int, seed: int, split: Split) -> list[str]:
    """Picks random captions, the six categories in equal shares; small categories repeat theirs."""
    rng = random.Random(seed)
    specs = random_specs(count, rng, split=split)
    return [random_phrase(spec, rng) for spec in specs]


def generate_images(
    pipe: Any, captions: Sequence[str], guidance: float = GUIDANCE, *, seed: int = 0
) -> Tensor:
    """Generates an image for each caption: uint8 (N, 128, 128, 3).

    Args:
        pipe: the generator.
        captions: what to show.
        guidance: scale of classifier-free guidance.
        seed: of the first image; the others have the numbers after it.
    """
    batches = []
    for start in range(0, len(captions), BATCH):
        batch = list(captions[start : start + BATCH])
        # CPU generators make the same noise on every device.
        seeds = [torch.Generator("cpu").manual_seed(seed + start + i) for i in range(len(batch))]
        call = {**BUNDLED_CALL, "guidance_scale": guidance}
        images = pipe(batch, generator=seeds, output_type="pt", **call).images
        batches.append((images * 255).round().byte().permute(0, 2, 3, 1).cpu())
    return torch.cat(batches)
