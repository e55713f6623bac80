"""How large the bundled generator is and how its stages are trained: two presets.

`cpu` is small enough to try the code on two cores; `gpu` is the one that ships. A checkpoint
is always a whole Stable Diffusion 3 folder and states its own dimensions, so sizes are read
once, when a generator starts from nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Sizes:
    """Dimensions of a generator that starts from nothing.

    `vae`: widths at 128, 64, 32 and 16 pixels a side. `latents`: channels of the 16 x 16
    latents. `text`, `text_2`: (layers, width) of the two text encoders. `depth`, `heads`: of
    the transformer, whose heads are 32 wide.
    """

    vae: tuple[int, int, int, int]
    latents: int
    text: tuple[int, int]
    text_2: tuple[int, int]
    depth: int
    heads: int


@dataclass(frozen=True, slots=True)
class Training:
    """Pictures a step and peak learning rate of each stage; `workers` make captions.

    `vae_crop`: the autoencoder learns from windows of this many pixels a side.
    """

    vae_batch: int
    vae_crop: int
    vae_rate: float
    text_batch: int
    text_rate: float
    flow_batch: int
    flow_rate: float
    workers: int
    ema: float


@dataclass(frozen=True, slots=True)
class Preset:
    """Sizes and training."""

    sizes: Sizes
    training: Training


CONFIGS: Final = {
    "cpu": Preset(
        Sizes((16, 32, 48, 64), 8, (2, 64), (1, 32), depth=5, heads=4),
        Training(
            vae_batch=16,
            vae_crop=64,
            vae_rate=2e-3,
            text_batch=64,
            text_rate=2e-3,
            flow_batch=32,
            flow_rate=1e-3,
            workers=0,
            ema=0.998,
        ),
    ),
    "gpu": Preset(
        Sizes((24, 48, 64, 96), 8, (3, 96), (1, 32), depth=5, heads=5),
        Training(
            vae_batch=128,
            vae_crop=128,
            vae_rate=1e-3,
            text_batch=512,
            text_rate=2e-3,
            flow_batch=1024,
            flow_rate=1.2e-3,
            workers=12,
            ema=0.999,
        ),
    ),
}
