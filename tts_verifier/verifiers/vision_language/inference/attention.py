"""Attention of vision towers in few large calls, where transformers makes one for each window.

Qwen2-VL and its relatives pack the patches of all images into one sequence, cut it into windows or
images, and attend within each. Without the package flash-attn, transformers calls attention once
for each part and layer, which keeps a GPU waiting. Parts of equal length fit into one call: for
images of one size there are at most four lengths.
"""

from __future__ import annotations

import inspect
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AttentionInterface

from tts_verifier.verifiers.imagedoctor.model.flash import attend

NAME: Final = "flash_by_length"
"""Its name in transformers, where "flash" means that it is given the ends of all parts at once."""


def attend_by_length(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None = None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attends within each part of a packed sequence.

    Args:
        module: not used.
        query: (1, heads, tokens, width); key and value likewise.
        key: see above.
        value: see above.
        attention_mask: not used.
        scaling: of the products; None = one over the root of the width.
        cu_seq_lens_q: (parts + 1,) where parts begin and end; None = there is a single part.

    Returns:
        (1, tokens, heads, width), and no weights.
    """
    if cu_seq_lens_q is None:
        found = attend(query, key, value, scale=scaling)
        return found.transpose(1, 2), None
    ends = cu_seq_lens_q.long()
    lengths = ends.diff()
    out = torch.empty_like(query[0])
    for length in lengths.unique().tolist():
        starts = ends[:-1][lengths == length]
        places = (starts[:, None] + torch.arange(length, device=ends.device)).flatten()
        q, k, v = (
            packed[0][:, places].unflatten(1, (-1, length)).transpose(0, 1)
            for packed in (query, key, value)
        )
        found = attend(q, k, v, scale=scaling)
        out[:, places] = found.transpose(0, 1).flatten(1, 2)
    return out.transpose(0, 1)[None], None


def use_attention_by_length(model: Any) -> None:
    """Lets the vision tower of a model use `attend_by_length`, if it packs images."""
    packs = [
        module
        for module in model.modules()
        if hasattr(module, "config") and "cu_seqlens" in _arguments(module)
    ]
    usual = [m for m in packs if m.config._attn_implementation == "sdpa"]
    if usual:
        AttentionInterface.register(NAME, attend_by_length)
    for module in usual:
        module.config._attn_implementation = NAME


def _arguments(module: Any) -> Any:
    return inspect.signature(module.forward).parameters
