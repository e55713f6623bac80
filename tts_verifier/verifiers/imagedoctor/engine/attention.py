"""Attention of prefill, over whole prompts, and of a decode step, over the KV cache.

Both put the new keys and values into the KV cache. In a decode step on a GPU one Triton kernel
rotates queries and keys, stores keys and values, and attends to as many tokens as each sequence
has; another combines the parts. Elsewhere, and in float32, torch attends to one rounded-up
length for all sequences, under a mask.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tts_verifier.verifiers.imagedoctor.engine.kv_cache import LayerCache, SequenceBuffers
from tts_verifier.verifiers.imagedoctor.engine.layers import AttentionShape, Rope
from tts_verifier.verifiers.imagedoctor.model.flash import attend
from tts_verifier.verifiers.imagedoctor.ops.pointwise import rotate_heads, use_triton

MAX_KERNEL_QUERIES: Final = 128
"""Queries of one key head that fit into a tile of the kernel."""
KERNEL_HEAD_SIZES: Final = (32, 64, 128)
"""Head sizes that the kernel can tile."""


class PrefillAttention:
    """Causal attention within right-padded prompts; no token attends to padding.

    Args:
        buffers: receive keys and values.
        at: (N,), the sequences of the prompts.
        shape: of the attention.
    """

    def __init__(self, buffers: SequenceBuffers, at: Tensor, shape: AttentionShape) -> None:
        self.buffers, self.at, self.shape = buffers, at, shape

    def attend(self, layer: int, qkv: Tensor, rope: Rope) -> Tensor:
        """(N, T, fused) -> (N, T, heads * size); see `layers.Attend`."""
        shape, cache, count = self.shape, self.buffers.kv_cache[layer], qkv.shape[1]
        # Padding is stored too. The lengths hide it until decode steps overwrite it.
        at = self.at.to(cache.device)
        if use_triton(qkv) and cache.device == qkv.device:
            from tts_verifier.verifiers.imagedoctor.ops import pointwise_kernels

            heads = qkv.unflatten(-1, (-1, shape.size))
            pointwise_kernels.triton_rotate_and_store(heads, *rope, at, *cache)
        else:
            heads = _rotate(qkv, rope, shape).unflatten(-1, (-1, shape.size))
            kv = heads[:, :, shape.heads :].unflatten(2, (2, -1)).permute(0, 2, 3, 1, 4)
            for stored, part in zip(cache.tensors, cache.rounded(kv), strict=True):
                stored[at, ..., :count, :] = part
        q, k, v = heads.transpose(1, 2).split([shape.heads, shape.kv_heads, shape.kv_heads], 1)
        # Padding on the right needs no mask, because causal attention does not look ahead.
        out = attend(q, k, v, causal=True)
        return out.transpose(1, 2).flatten(2)


class DecodeAttention:
    """Attention of T new tokens a sequence over the first `bucket` tokens of the KV cache.

    A token attends to all tokens before it, those of the same step included.

    Args:
        buffers: the KV cache and its lengths.
        sequences: how many leading sequences take part.
        bucket: an upper bound of a live sequence's tokens after the step.
        shape: of the attention.
        x: (sequences, T, H), the new tokens' states, for their dtype and device.
    """

    def __init__(
        self,
        buffers: SequenceBuffers,
        sequences: int,
        bucket: int,
        shape: AttentionShape,
        x: Tensor,
    ) -> None:
        self.buffers, self.sequences, self.bucket, self.shape = buffers, sequences, bucket, shape
        queries = x.shape[1] * shape.heads // shape.kv_heads
        tiled = queries <= MAX_KERNEL_QUERIES and shape.size in KERNEL_HEAD_SIZES
        one_device = all(cache.device == x.device for cache in buffers.kv_cache)
        self._in_kernel = x.dtype.itemsize == 2 and tiled and one_device and use_triton(x)
        if not self._in_kernel:
            self._prepare_mask(x.shape[1], x.dtype)

    def attend(self, layer: int, qkv: Tensor, rope: Rope) -> Tensor:
        """(sequences, T, fused) -> (sequences, T, heads * size); see `layers.Attend`."""
        cache = self.buffers.kv_cache[layer]
        if self._in_kernel:
            from tts_verifier.verifiers.imagedoctor.ops import attention_kernels

            return attention_kernels.triton_cached_attention(
                qkv, rope, *cache, self.buffers.length, bucket=self.bucket
            )
        return self._attend_masked(cache, _rotate(qkv, rope, self.shape))

    def _prepare_mask(self, count: int, dtype: torch.dtype) -> None:
        """Computes once for all layers where new tokens go, and what they may attend to."""
        buffers, shape, device = self.buffers, self.shape, self.buffers.length.device
        place = buffers.length[: self.sequences, None] + torch.arange(count, device=device)
        # A sequence that has ended keeps its length; its tokens must still land inside.
        place = place.clamp(max=buffers.capacity - 1)
        # Flat places: one copy then stores the keys and values of all sequences, with no shape
        # that depends on their lengths, as a captured step requires.
        heads = torch.arange(self.sequences * 2 * shape.kv_heads, device=device)
        heads = heads.view(self.sequences, -1, 1)
        self._places = (heads * buffers.capacity + place[:, None]).flatten()
        later = torch.arange(self.bucket, device=device) > place[..., None]
        blank = torch.zeros(self.sequences, count, self.bucket, dtype=dtype, device=device)
        bias = blank.masked_fill_(later, -torch.inf)[:, None]
        # The queries of a key head are ordered by query head, then by token. The mask is the same
        # for all heads, so for one token broadcasting suffices.
        group = shape.heads // shape.kv_heads
        self._bias = bias if count == 1 else bias.repeat(1, 1, group, 1)

    def _attend_masked(self, cache: LayerCache, qkv: Tensor) -> Tensor:
        shape, count = self.shape, qkv.shape[1]
        width = shape.heads * shape.size
        new = qkv[..., width:].unflatten(-1, (-1, shape.size)).transpose(1, 2)
        for stored, part in zip(cache.tensors, cache.rounded(new), strict=True):
            flat = stored.view(-1, stored.shape[-1])
            flat.index_copy_(0, self._places.to(stored.device), part.flatten(0, 2))
        keys, values = cache.read(self.sequences, self.bucket, qkv.dtype).unbind(1)
        # The query heads of one key head become further queries, so keys are read only once.
        query = qkv[..., :width].unflatten(-1, (shape.kv_heads, -1, shape.size))
        query = query.permute(0, 2, 3, 1, 4).flatten(2, 3)
        bias = self._bias.to(keys.device)
        out: Tensor = scaled_dot_product_attention(query, keys, values, attn_mask=bias)
        out = out.unflatten(2, (-1, count)).permute(0, 3, 1, 2, 4)
        return out.reshape(self.sequences, count, width)


def _rotate(qkv: Tensor, rope: Rope, shape: AttentionShape) -> Tensor:
    """Applies RoPE to the queries and keys of fused heads (N, T, fused)."""
    heads = qkv.flatten(0, 1).unflatten(-1, (-1, shape.size))
    return rotate_heads(heads, *rope, shape.rotated).view(qkv.shape)
