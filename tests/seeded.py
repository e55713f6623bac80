"""A source of random numbers for tests that make pictures."""

import torch


def seeded(seed: int) -> torch.Generator:
    """Returns a CPU generator that starts from `seed`."""
    return torch.Generator().manual_seed(seed)
