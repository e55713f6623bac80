"""Where tokens stand: M-RoPE positions, and the states that predict the special tokens.

Text advances by one in all three of (time, row, column); the cells of an image share one
time and differ in row and column; text goes on after the larger side. Source: Qwen2-VL
(Wang et al. 2024), section 2.1; the rule for the predicting state is LISA's (Lai et al.
2023), as ImageDoctor's training forward applies it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.model.vision import Grid
from tts_verifier.verifiers.imagedoctor.ops.transfer import to_device


def rope_positions(
    ids: Tensor, grids: Sequence[Grid], *, image_token: int, merge: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Computes positions of rows that hold exactly one image each; no host synchronisation.

    Args:
        ids: (B, T).
        grids: each row's image in patches.
        image_token: the id that stands for one merged cell.
        merge: patches per cell, a side.
        mask: (B, T), False or 0 at padding, on either side; None = no padding.

    Returns:
        Positions (3, B, T), 0 at padding, and each row's shift (B, 1): position minus index
        of the tokens after the image, which continuing tokens share.
    """
    sides = to_device(torch.tensor([(h // merge, w // merge) for h, w in grids]), ids.device)
    h, w = sides[:, :1], sides[:, 1:]
    real = torch.ones_like(ids) if mask is None else mask.to(ids.dtype)
    index = real.cumsum(1) - real
    image = ((ids == image_token) & real.bool()).to(ids.dtype)
    seen = image.cumsum(1)
    rank = seen - image
    shift = torch.maximum(h, w) - h * w
    start = index - rank
    text = index + shift * (seen == h * w)
    inside = image.bool()
    time = torch.where(inside, start, text)
    row = torch.where(inside, start + rank // w, text)
    column = torch.where(inside, start + rank % w, text)
    return torch.stack([time, row, column]) * real, shift


def predicting(ids: Tensor, tokens: Sequence[int], *, mask: Tensor | None = None) -> Tensor:
    """Finds the position before the first of each special token.

    Args:
        ids: (B, T).
        tokens: K ids to look for.
        mask: (B, T), True where a token counts (say, the reply); None = everywhere.

    Returns:
        (B, K), -1 where a row has no such token (one at position 0 is never predicted).
    """
    counts = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    hit = torch.stack([ids[:, 1:] == token for token in tokens], -1) & counts[:, 1:, None]
    return torch.where(hit.any(1), hit.int().argmax(1), -1)
