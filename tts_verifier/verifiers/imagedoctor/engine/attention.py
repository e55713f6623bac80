"""Attention of a step: new tokens over what their rows hold already, and themselves.

On a GPU a kernel rotates, puts new keys and values in their places, and attends to as much as
each row has, another joins the parts; elsewhere, and in float32, torch attends to all rows'
rounded-up length with a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tts_verifier.verifiers.imagedoctor.engine.kv_cache import Slots
from tts_verifier.verifiers.imagedoctor.engine.layers import Shape, Turn
from tts_verifier.verifiers.imagedoctor.ops.pointwise import rotate_heads, use_triton

MOST_QUERIES = 128
"""Queries of a key head that a kernel holds."""


class Past:
    """Attention of T new tokens a row over the first `bucket` places of the past.

    A token sees what was there before it, those of its own row included.
    """

    def __init__(self, slots: Slots, rows: int, bucket: int, shape: Shape, x: Tensor) -> None:
        self.slots, self.rows, self.bucket, self.shape = slots, rows, bucket, shape
        queries = x.shape[1] * shape.heads // shape.kv_heads
        small = x.dtype.itemsize == 2 and queries <= MOST_QUERIES and shape.size in (32, 64, 128)
        together = all(past.device == x.device for past in slots.past)
        self._kernels = small and together and use_triton(x)
        if not self._kernels:
            self._mask(x.shape[1], x.dtype)

    def _mask(self, count: int, dtype: torch.dtype) -> None:
        slots, shape, device = self.slots, self.shape, self.slots.length.device
        place = slots.length[: self.rows, None] + torch.arange(count, device=device)
        place = place.clamp(max=slots.room - 1)
        heads = torch.arange(self.rows * 2 * shape.kv_heads, device=device).view(self.rows, -1, 1)
        self._place = (heads * slots.room + place[:, None]).flatten()
        ahead = torch.arange(self.bucket, device=device) > place[..., None]
        blank = torch.zeros(self.rows, count, self.bucket, dtype=dtype, device=device)
        bias = blank.masked_fill_(ahead, -torch.inf)[:, None]
        group = shape.heads // shape.kv_heads
        self._bias = bias if count == 1 else bias.repeat(1, 1, group, 1)

    def attend(self, layer: int, qkv: Tensor, turn: Turn) -> Tensor:
        """(rows, T, joined) -> (rows, T, heads * size); query heads of a group go together."""
        shape, past, count = self.shape, self.slots.past[layer], qkv.shape[1]
        if self._kernels:
            from tts_verifier.verifiers.imagedoctor.ops import decode_kernels

            length = self.slots.length
            return decode_kernels.triton_cached_attention(
                qkv, turn, past, length, bucket=self.bucket
            )
        heads = qkv.flatten(0, 1).unflatten(-1, (-1, shape.size))
        qkv = rotate_heads(heads, *turn, shape.turned).view(qkv.shape)
        width = shape.heads * shape.size
        new = qkv[..., width:].unflatten(-1, (-1, shape.size)).transpose(1, 2)
        flat = past.view(-1, shape.size)
        flat.index_copy_(0, self._place.to(past.device), new.flatten(0, 2))
        keys, values = past[: self.rows, ..., : self.bucket, :].unbind(1)
        query = qkv[..., :width].unflatten(-1, (shape.kv_heads, -1, shape.size))
        query = query.permute(0, 2, 3, 1, 4).flatten(2, 3)
        bias = self._bias.to(past.device)
        out: Tensor = scaled_dot_product_attention(query, keys, values, attn_mask=bias)
        out = out.unflatten(2, (-1, count)).permute(0, 3, 1, 2, 4)
        return out.reshape(self.rows, count, width)
