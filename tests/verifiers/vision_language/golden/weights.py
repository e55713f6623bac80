"""Weights and pictures from their names and seeds alone, the same in every environment."""

import hashlib

import numpy as np
import torch
from PIL import Image

IMAGES = ((90, 60, 0), (300, 500, 1), (640, 640, 2))
"""Width, height and seed."""
PROMPTS = ("a cat", "two dogs in front of a house on a hill", "Yes, a sign with {braces} on it")


def picture(width, height, seed):
    """Smooth noise, which survives resizing."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def value(name, shape):
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    drawn = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if len(shape) == 1:
        return 1 + 0.1 * drawn if "norm" in name or "ln_q" in name else 0.1 * drawn
    return drawn * np.float32(1.5 / np.sqrt(np.prod(shape[1:])))


def fill(module):
    """Fills a module's parameters by their official names; a tied one counts once."""
    state = module.state_dict()
    for name, tensor in state.items():
        tensor.copy_(torch.from_numpy(value(name, tuple(tensor.shape))))
