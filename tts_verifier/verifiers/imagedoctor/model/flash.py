"""Attention that costs the same for a new shape as for one that was there before.

On Hopper torch hands half-precision attention to cuDNN first, which plans for every new (batch,
tokens): some 50 ms on an H200, a third of a prefill of 16 pictures of the released model
(examples/benchmarks/attention_shapes.py). Batches of prompts seldom repeat a shape. FlashAttention
plans nothing.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.functional import scaled_dot_product_attention


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    """Attends, with FlashAttention where it can be used.

    torch's own switch between the two, `sdpa_kernel`, is the whole process's, and another thread
    may be drawing pictures.

    Args:
        query: (N, heads, T, width).
        key: (N, key heads, T, width); each serves an equal number of heads.
        value: as the keys.
        causal: whether no token attends to later ones.
        scale: of the products; None = one over the root of the width.

    Returns:
        (N, heads, T, width).
    """
    shared = query.shape[1] != key.shape[1]
    # Of other widths torch makes padded copies first.
    if query.is_cuda and query.shape[-1] % 8 == 0:
        params = SDPAParams(query, key, value, None, 0.0, causal, shared)
        # It looks at the current GPU; a layer may be on an older one, which lacks FlashAttention.
        with torch.cuda.device_of(query):
            usable = can_use_flash_attention(params)
        if usable:
            flash = torch.ops.aten._scaled_dot_product_flash_attention
            return cast(Tensor, flash(query, key, value, 0.0, causal, scale=scale)[0])
    return scaled_dot_product_attention(
        query, key, value, is_causal=causal, enable_gqa=shared, scale=scale
    )
