"""Triton kernels of attention: over the KV cache in a decode step, and within vision windows.

Both rotate queries and keys as they load them. A decode step reads a KV cache of a thousand tokens
for each sequence: the cache is cut into chunks, all chunks are attended to in parallel, and the
results are combined (Flash-Decoding, Dao et al. 2023); the query heads that share a key head are
one tile. A window of the vision tower has a few dozen tokens, so one program holds one head of it
whole. All sums have a fixed order, so results are reproducible. Import this module only where
Triton is installed.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.ops.row_kernels import (
    round_to_int8,
    scale_of_int8,
    tile_rows,
)

TILINGS: Final = ((64, 128, 32, 2, 2), (256, 512, 64, 2, 2), (2**31, 1024, 64, 2, 2))
"""Up to so many sequences times key heads, one program attends to so many cached tokens, so many
at a time, with so many blocks in flight and so many warps. Few sequences fill a GPU in small
chunks only."""
INT8_TILINGS: Final = (
    (4, 64, 32, 2, 4), (64, 128, 32, 3, 1), (256, 512, 32, 3, 1), (2**31, 1024, 32, 3, 1)
)  # fmt: skip
"""The same for a cache in int8. Its blocks have half the bytes, so more of them are in flight."""
SEVERAL_TOKENS: Final = 64
"""Where a sequence has several new tokens, chunks are as for so many sequences times key heads:
the tiles of their queries leave room for small blocks only."""


@triton.jit
def _load_rotated(base, token, d, cos, sin, real, SIZE: tl.constexpr):
    """Loads vectors (A, D) at `base` (A,), rotated by the angles of `token` (A,).

    D is at least SIZE; the channels from SIZE on are 0.
    """
    # Channel d is rotated with channel d ± SIZE / 2; the sign is part of the sine.
    partner = (d + SIZE // 2) % SIZE
    real = real[:, None] & (d < SIZE)[None, :]
    x = tl.load(base[:, None] + d[None, :], mask=real, other=0.0).to(tl.float32)
    y = tl.load(base[:, None] + partner[None, :], mask=real, other=0.0).to(tl.float32)
    at = token[:, None] * SIZE + d[None, :]
    c = tl.load(cos + at, mask=real, other=0.0).to(tl.float32)
    s = tl.load(sin + at, mask=real, other=0.0).to(tl.float32)
    return x * c + y * s


@triton.jit
def _update_softmax(q, k, v, visible, scale, value_scale, peak, total, mixed):
    """Adds keys and values (N, SIZE) to the running softmax of queries (M, SIZE).

    Scores are multiplied by `scale`, values by `value_scale`: numbers, or (1, N).
    """
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    s = tl.where(visible, s, float("-inf"))
    top = tl.maximum(peak, tl.max(s, 1))
    # A query that sees no key yet has the peak -inf, and -inf - -inf would be NaN.
    finite = tl.where(top == float("-inf"), 0.0, top)
    # Earlier sums were taken under the old peak, so they are scaled to the new one.
    rescale, e = tl.exp(peak - finite), tl.exp(s - finite[:, None])
    total = total * rescale + tl.sum(e, 1)
    weights = (e * value_scale).to(v.dtype)
    mixed = tl.dot(weights, v, mixed * rescale[:, None], input_precision="ieee")
    return top, total, mixed


@triton.jit
def _load_vectors(
    base, scales, at, d, real, SIZE: tl.constexpr, INT8: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """Loads vectors `at` (N,) of a cache as (N, SIZE), and their scales: (1, N), or 1."""
    x = tl.load(base + at[:, None] * SIZE + d[None, :], mask=real[:, None], other=0.0)
    scale = tl.load(scales + at, mask=real, other=0.0)[None, :] if INT8 else 1.0
    return x.to(DTYPE), scale


@triton.jit
def _store_vectors(
    x, base, scales, at, d, real, SIZE: tl.constexpr, INT8: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """Stores vectors (N, SIZE) in a cache; returns what `_load_vectors` will load."""
    if INT8:
        x = x.to(tl.float32)
        peak = tl.max(tl.abs(x), 1)
        scale, x = scale_of_int8(peak)[None, :], round_to_int8(x, peak)
        tl.store(scales + at, scale_of_int8(peak), mask=real)
    else:
        scale = 1.0
        x = x.to(DTYPE)
    tl.store(base + at[:, None] * SIZE + d[None, :], x, mask=real[:, None])
    return x.to(DTYPE), scale


@triton.jit
def _attend_chunk_kernel(
    qkv, cos, sin, cache, scales, length, sums, peaks, capacity, scale, chunks,
    T: tl.constexpr, GROUP: tl.constexpr, KV: tl.constexpr, SIZE: tl.constexpr,
    M: tl.constexpr, NEW: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    ALONE: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """Attends to one chunk of a sequence's cache for one key head; the last adds the new tokens.

    ALONE: the only chunk; `sums` is then the output. INT8: the cache has scales.
    """
    row, head = tl.program_id(0) // KV, tl.program_id(0) % KV
    start = tl.program_id(1) * CHUNK
    before = tl.load(length + row).to(tl.int32)
    # Not >=: the chunk that begins at `before` takes the new tokens.
    if start > before:
        return
    dtype = qkv.dtype.element_ty
    width: tl.constexpr = (GROUP + 2) * KV * SIZE
    d, m = tl.arange(0, SIZE), tl.arange(0, M)
    # Row m of the tile is query head m // T of the key head, at new token m % T.
    query = row * T + m % T
    base = qkv + query * width + (head * GROUP + m // T) * SIZE
    q = _load_rotated(base, query, d, cos, sin, m < GROUP * T, SIZE).to(dtype)
    # Offsets into a large cache may exceed 32 bits.
    first = (row * 2 * KV + head).to(tl.int64) * capacity
    keys = cache + first * SIZE
    values = keys + KV * capacity * SIZE
    key_scales = scales + first
    value_scales = key_scales + KV * capacity
    peak = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    mixed = tl.zeros((M, SIZE), tl.float32)
    for i in range(0, tl.minimum(CHUNK, before - start), BLOCK):
        p = start + i + tl.arange(0, BLOCK)
        k, of_keys = _load_vectors(keys, key_scales, p, d, p < before, SIZE, INT8, dtype)
        v, of_values = _load_vectors(values, value_scales, p, d, p < before, SIZE, INT8, dtype)
        visible = (p < before)[None, :]
        peak, total, mixed = _update_softmax(
            q, k, v, visible, of_keys * scale, of_values, peak, total, mixed
        )
    if start + CHUNK > before:
        t = tl.arange(0, NEW)
        source = qkv + (row * T + t) * width + (GROUP * KV + head) * SIZE
        k = _load_rotated(source, row * T + t, d, cos, sin, t < T, SIZE)
        value = source[:, None] + KV * SIZE + d[None, :]
        v = tl.load(value, mask=(t < T)[:, None], other=0.0)
        visible = t[None, :] <= (m % T)[:, None]
        # The cache of a sequence that has ended may be full.
        p = before + t
        free = (t < T) & (p < capacity)
        k, of_keys = _store_vectors(k, keys, key_scales, p, d, free, SIZE, INT8, dtype)
        v, of_values = _store_vectors(v, values, value_scales, p, d, free, SIZE, INT8, dtype)
        peak, total, mixed = _update_softmax(
            q, k, v, visible, of_keys * scale, of_values, peak, total, mixed
        )
    real = m < GROUP * T
    if ALONE:
        place = (query * KV * GROUP + head * GROUP + m // T) * SIZE
        tl.store(sums + place[:, None] + d[None, :], mixed / total[:, None], mask=real[:, None])
    else:
        at = (tl.program_id(0) * chunks + tl.program_id(1)) * M + m
        tl.store(sums + at[:, None] * SIZE + d[None, :], mixed, mask=real[:, None])
        tl.store(peaks + at * 2, peak, mask=real)
        tl.store(peaks + at * 2 + 1, total, mask=real)


@triton.jit
def _combine_chunks_kernel(
    sums, peaks, length, out, chunks,
    T: tl.constexpr, GROUP: tl.constexpr, KV: tl.constexpr, SIZE: tl.constexpr,
    M: tl.constexpr, CHUNK: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Combines the results of all chunks for one query of one sequence."""
    row, head = tl.program_id(0) // KV, tl.program_id(0) % KV
    m = tl.program_id(1)
    d = tl.arange(0, SIZE)
    c = tl.arange(0, PADDED)
    # Programs of later chunks returned early and wrote nothing.
    filled = (c < chunks) & (c * CHUNK <= tl.load(length + row))
    at = (tl.program_id(0) * chunks + c) * M + m
    peak = tl.load(peaks + at * 2, mask=filled, other=float("-inf"))
    weight = tl.exp(peak - tl.max(peak, 0))
    total = tl.sum(weight * tl.load(peaks + at * 2 + 1, mask=filled, other=0.0), 0)
    part = tl.load(sums + at[:, None] * SIZE + d[None, :], mask=filled[:, None], other=0.0)
    mixed = tl.sum(part * weight[:, None], 0) / total
    place = ((row * T + m % T) * KV * GROUP + head * GROUP + m // T) * SIZE
    tl.store(out + place + d, mixed)


def triton_cached_attention(
    qkv: Tensor,
    rope: tuple[Tensor, Tensor],
    cache: Tensor,
    scales: Tensor | None,
    length: Tensor,
    *,
    bucket: int,
) -> Tensor:
    """Appends new keys and values to a layer's KV cache, and attends to all of it.

    Args:
        qkv: (sequences, T, queries, keys and values side by side), before rotation.
        rope: cosine and signed sine, (sequences * T, size) each.
        cache: (at least `sequences`, 2, kv heads, capacity, size), written in place.
        scales: of a cache in int8, (…, capacity, 1), written in place.
        length: (at least `sequences`,), the tokens that each sequence has in the cache already.
        bucket: at least as many as any running sequence has afterwards; sets the number of chunks.

    Returns:
        (sequences, T, heads * size).
    """
    rows, count, width = qkv.shape
    _, _, kv, capacity, size = cache.shape
    # For each key head there are `group` query heads, one key and one value.
    group = width // size // kv - 2
    queries = tile_rows(group * count)
    heads = rows * kv if count == 1 else SEVERAL_TOKENS
    tilings = TILINGS if scales is None else INT8_TILINGS
    chunk, block, stages, warps = next(tiling for most, *tiling in tilings if heads <= most)
    chunks = triton.cdiv(bucket, chunk)
    shape: dict[str, Any] = {
        "T": count, "GROUP": group, "KV": kv, "SIZE": size, "M": queries, "CHUNK": chunk,
    }  # fmt: skip
    out = qkv.new_empty(rows, count, group * kv * size)
    sums, peaks = out, out
    if chunks > 1:
        # The dtype is explicit because torch's default may be a 16-bit one.
        partial: dict[str, Any] = {"dtype": torch.float32, "device": qkv.device}
        sums = torch.empty(rows * kv, chunks, queries, size, **partial)
        peaks = torch.empty(rows * kv, chunks, queries, 2, **partial)
    _attend_chunk_kernel[(rows * kv, chunks)](
        qkv, *rope, cache, cache if scales is None else scales, length, sums, peaks, capacity,
        size**-0.5, chunks, **shape, NEW=tile_rows(count), BLOCK=block, ALONE=chunks == 1,
        INT8=scales is not None, num_stages=stages, num_warps=max(warps, queries // 16),
    )  # fmt: skip
    if chunks > 1:
        _combine_chunks_kernel[(rows * kv, group * count)](
            sums, peaks, length, out, chunks, **shape,
            PADDED=triton.next_power_of_2(chunks), num_warps=2,
        )  # fmt: skip
    return out


@triton.jit
def _load_halves(base, d, real, HALF: tl.constexpr):
    """Loads vectors (A, 2 * HALF) at `base` (A,) as two halves (A, D), 0 from HALF on."""
    real = real[:, None] & (d < HALF)[None, :]
    first = tl.load(base[:, None] + d[None, :], mask=real, other=0.0)
    second = tl.load(base[:, None] + HALF + d[None, :], mask=real, other=0.0)
    return first, second


@triton.jit
def _rotate_halves(first, second, cos, sin):
    """Rotates each pair of channels; returns halves in their own dtype."""
    x, y = first.to(tl.float32), second.to(tl.float32)
    return (x * cos - y * sin).to(first.dtype), (y * cos + x * sin).to(first.dtype)


@triton.jit
def _attend_windows_kernel(
    heads, cos, sin, starts, out, scale,
    HEADS: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
    EACH: tl.constexpr,
):  # fmt: skip
    """Computes the attention of EACH heads within one window."""
    window, group = tl.program_id(0), tl.program_id(1)
    start = tl.load(starts + window)
    t, d = tl.arange(0, TOKENS), tl.arange(0, CHANNELS)
    real = t < tl.load(starts + window + 1) - start
    # Offsets may exceed 32 bits: tokens times width of a whole batch.
    token = start.to(tl.int64) + t
    # Both halves have the same angles, and the second one's sine has its own sign.
    angles = token * (2 * HALF)
    c, _ = _load_halves(cos + angles, d, real, HALF)
    _, s = _load_halves(sin + angles, d, real, HALF)
    inside = real[:, None] & (d < HALF)[None, :]
    for i in tl.static_range(EACH):
        head = group * EACH + i
        base = heads + token * (6 * HEADS * HALF) + head * 2 * HALF
        q, q2 = _load_halves(base, d, real, HALF)
        k, k2 = _load_halves(base + 2 * HEADS * HALF, d, real, HALF)
        v, v2 = _load_halves(base + 4 * HEADS * HALF, d, real, HALF)
        q, q2 = _rotate_halves(q, q2, c, s)
        k, k2 = _rotate_halves(k, k2, c, s)
        # "ieee" concerns float32 only, which tests use: without it tensor cores would round.
        weights = tl.dot(q, tl.trans(k), input_precision="ieee")
        weights = tl.dot(q2, tl.trans(k2), weights, input_precision="ieee") * scale
        weights = tl.where(real[None, :], weights, float("-inf"))
        weights = tl.exp(weights - tl.max(weights, 1)[:, None])
        total = tl.sum(weights, 1)[:, None]
        weights = weights.to(v.dtype)
        place = out + (token * (2 * HEADS * HALF) + head * 2 * HALF)[:, None] + d[None, :]
        mixed = tl.dot(weights, v, input_precision="ieee") / total
        tl.store(place, mixed, mask=inside)
        mixed = tl.dot(weights, v2, input_precision="ieee") / total
        tl.store(place + HALF, mixed, mask=inside)


def triton_attend_windows(
    heads: Tensor, rope: tuple[Tensor, Tensor], starts: Tensor, longest: int
) -> Tensor:
    """Rotates queries and keys, and attends within windows.

    Args:
        heads: (T, 3 * heads, size): queries, keys and values, before rotation.
        rope: cosine and signed sine, (T, size) each, in the dtype to compute in.
        starts: (windows + 1,), the first token of each window, and T.
        longest: the tokens of the longest window.

    Returns:
        (T, heads * size).
    """
    tokens, all_heads, size = heads.shape
    count = all_heads // 3
    out = heads.new_empty(tokens, count * size)
    # Several heads of a window share the loaded angles.
    each = next(n for n in (4, 2, 1) if count % n == 0)
    _attend_windows_kernel[len(starts) - 1, count // each](
        heads, *rope, starts, out, size**-0.5, HEADS=count, HALF=size // 2, EACH=each,
        TOKENS=tile_rows(longest), CHANNELS=tile_rows(size // 2), num_warps=4,
    )  # fmt: skip
    return out
