"""Two presets of the bundled generator: its dimensions and how its stages are trained.

`cpu` is small enough to try the code on two cores; `gpu` is the one that ships. A checkpoint
is always a whole Stable Diffusion 3 folder that states its own dimensions, so the sizes here
matter only for a generator that starts from random weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class GeneratorSizes:
    """Dimensions of a generator that starts from random weights."""

    vae_widths: tuple[int, int, int, int]
    """Channels of the autoencoder at 128, 64, 32 and 16 pixels a side."""
    latent_channels: int
    """Channels of the 16 x 16 latents."""
    text_encoder: tuple[int, int]
    """(layers, width) of the first text encoder."""
    text_encoder_2: tuple[int, int]
    """(layers, width) of the second text encoder."""
    depth: int
    """Blocks of the transformer."""
    heads: int
    """Attention heads of the transformer, each 32 wide."""


@dataclass(frozen=True, slots=True)
class GeneratorTraining:
    """How the stages are trained."""

    vae_batch: int
    """Images a step of the autoencoder's stage."""
    vae_crop: int
    """Side in pixels of the windows that the autoencoder learns from."""
    vae_learning_rate: float
    """Peak learning rate of the autoencoder's stage."""
    text_batch: int
    """Captions a step of the text encoders' stage."""
    text_learning_rate: float
    """Peak learning rate of the text encoders' stage."""
    flow_batch: int
    """Images a step of the flow stage and of the biases stage."""
    flow_learning_rate: float
    """Peak learning rate of these two stages."""
    workers: int
    """Processes that make captions beside the step; 0 = none."""
    ema_decay: float
    """Decay of the averaged weights."""


@dataclass(frozen=True, slots=True)
class GeneratorPreset:
    """A generator and its training."""

    sizes: GeneratorSizes
    """Its dimensions."""
    training: GeneratorTraining
    """How it is trained."""


GENERATOR_PRESETS: Final = {
    "cpu": GeneratorPreset(
        GeneratorSizes((16, 32, 48, 64), 8, (2, 64), (1, 32), depth=5, heads=4),
        GeneratorTraining(
            vae_batch=16,
            vae_crop=64,
            vae_learning_rate=2e-3,
            text_batch=64,
            text_learning_rate=2e-3,
            flow_batch=32,
            flow_learning_rate=1e-3,
            workers=0,
            ema_decay=0.998,
        ),
    ),
    "gpu": GeneratorPreset(
        GeneratorSizes((24, 48, 64, 96), 8, (3, 96), (1, 32), depth=5, heads=5),
        GeneratorTraining(
            vae_batch=128,
            vae_crop=128,
            vae_learning_rate=1e-3,
            text_batch=512,
            text_learning_rate=2e-3,
            flow_batch=1024,
            flow_learning_rate=1.2e-3,
            workers=12,
            ema_decay=0.999,
        ),
    ),
}
