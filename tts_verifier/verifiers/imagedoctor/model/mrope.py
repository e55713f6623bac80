"""M-RoPE positions, and the places of the states that predict special tokens.

Text advances by one in all three of (time, row, column). The merged tokens of an image share one
time, and differ in row and column. Text after the image continues after its larger side. Source:
Qwen2-VL (Wang et al. 2024), section 2.1. The rule for the predicting state is LISA's (Lai et al.
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
    """Computes the positions of sequences with exactly one image each.

    The host does not wait for the device.

    Args:
        ids: (B, T).
        grids: (rows, columns) in patches of each sequence's image.
        image_token: the id that holds the place of one merged token.
        merge: patches along a side of one merged token.
        mask: (B, T), False or 0 at padding, on either side; None = no padding.

    Returns:
        Positions (3, B, T), 0 at padding; and each sequence's shift (B, 1), the position minus
        the index of every token after the image. Tokens that are decoded later have it too.
    """
    sides = to_device(torch.tensor([(h // merge, w // merge) for h, w in grids]), ids.device)
    h, w = sides[:, :1], sides[:, 1:]
    real = torch.ones_like(ids) if mask is None else mask.to(ids.dtype)
    # Counts real tokens only, so padding on the left moves nothing.
    index = real.cumsum(1) - real
    image = ((ids == image_token) & real.bool()).to(ids.dtype)
    image_count = image.cumsum(1)
    # `rank` numbers the image's tokens from 0; `start` is the index of the first of them.
    rank = image_count - image
    start = index - rank
    # An image takes h * w tokens, but advances the position by its larger side only.
    shift = torch.maximum(h, w) - h * w
    # The count reaches h * w at the last image token, so the shift holds for text after it.
    text = index + shift * (image_count == h * w)
    in_image = image.bool()
    time = torch.where(in_image, start, text)
    row = torch.where(in_image, start + rank // w, text)
    column = torch.where(in_image, start + rank % w, text)
    return torch.stack([time, row, column]) * real, shift


def predicting_positions(
    ids: Tensor, tokens: Sequence[int], *, mask: Tensor | None = None
) -> Tensor:
    """Finds, for each special token, the index of the state that predicts its first occurrence.

    Args:
        ids: (B, T).
        tokens: K ids to look for.
        mask: (B, T), True where a token counts, for example in the reply; None = everywhere.

    Returns:
        (B, K), the index before the token; -1 if the sequence has no such token. A token at
        index 0 does not count, as no state predicts it.
    """
    counts = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    hit = torch.stack([ids[:, 1:] == token for token in tokens], -1) & counts[:, 1:, None]
    # Of equal values argmax returns the first; it does not take bool.
    return torch.where(hit.any(1), hit.int().argmax(1), -1)
