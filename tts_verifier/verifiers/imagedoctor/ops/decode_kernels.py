"""Triton kernels of a decode step.

Decoding is memory-bound: its cost is reading each weight once, for some 32 sequences at a time,
and reading a KV cache of a thousand tokens for each sequence. Products are split over their
inner width to keep the whole GPU reading; one more kernel adds the parts to the states and
norms them. Attention cuts the KV cache into chunks, attends to all chunks in parallel and
combines the results (Flash-Decoding, Dao et al. 2023); the query heads that share a key head are
one tile. All sums have a fixed order, so results are reproducible. Import this module only where
Triton is installed.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.ops.fp8 import Fp8Matrix, Matrix
from tts_verifier.verifiers.imagedoctor.ops.row_kernels import empty_fp8, store_norm
from tts_verifier.verifiers.imagedoctor.ops.window_kernels import load_rotated

CACHE_CHUNKS: Final = ((64, 128, 32), (256, 512, 64), (2**31, 1024, 64))
"""Up to so many sequences times key heads, one program attends to so many cached tokens, so many
at a time. Few sequences fill a GPU in small chunks only."""
SPLITS: Final = 2
"""Parts into which the inner width of the output and down products is split."""
SIZE_MULTIPLE: Final = 256
"""Both sizes of a weight must be multiples of this, because tiles are not masked."""

# Columns and inner steps of a tile: the fastest of some two hundred combinations on an H100.
_TILE_COLUMNS: Final = 32
_INNER_STEP: Final = 128


@triton.jit
def _product_kernel(
    x, w, x_scale, w_scale, out, rows, columns, K: tl.constexpr, SHARE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr, GATED: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Computes x @ w.T for N columns and a share of K; gated: w[columns + n] holds values."""
    m = tl.arange(0, M)
    n = tl.program_id(0) * N + tl.arange(0, N)
    split = tl.program_id(1)
    k = split * SHARE + tl.arange(0, STEP)
    real = (m < rows)[:, None]
    inputs = x + m[:, None] * K + k[None, :]
    weights = w + n[None, :] * K + k[:, None]
    total = tl.zeros((M, N), tl.float32)
    value = tl.zeros((M, N), tl.float32)
    # "ieee" concerns float32 only, which tests use: without it tensor cores would round to TF32.
    for start in range(0, SHARE, STEP):
        part = tl.load(inputs + start, mask=real, other=0.0)
        weight = tl.load(weights + start)
        # float16 holds every number of e4m3, and small tiles of it multiply on any tensor core.
        if FP8:
            part, weight = part.to(tl.float16), weight.to(tl.float16)
        total = tl.dot(part, weight, total, input_precision="ieee")
        if GATED:
            values = tl.load(weights + start + columns * K)
            if FP8:
                values = values.to(tl.float16)
            value = tl.dot(part, values, value, input_precision="ieee")
    if FP8:
        row_scale = tl.load(x_scale + m, mask=m < rows, other=0.0)[:, None]
        total *= row_scale * tl.load(w_scale + n)[None, :]
        if GATED:
            value *= row_scale * tl.load(w_scale + columns + n)[None, :]
    if GATED:
        total = total * tl.sigmoid(total) * value
    tl.store(out + (split * rows + m[:, None]) * columns + n[None, :], total, mask=real)


def triton_gated_product(x: Matrix, weight: Matrix) -> Tensor:
    """Computes `products.gated_product`, in 16 bits whatever follows."""
    factors, fp8 = _factors(x, weight)
    rows, inner = factors[0].shape
    columns = len(weight) // 2
    out = torch.empty(rows, columns, dtype=x.dtype, device=factors[0].device)
    _product_kernel[(columns // _TILE_COLUMNS, 1)](
        *factors, out, rows, columns, inner, inner, M=_tile_rows(rows), N=_TILE_COLUMNS,
        STEP=_INNER_STEP, GATED=True, FP8=fp8, num_stages=3, num_warps=2,
    )  # fmt: skip
    return out


def _factors(x: Matrix, weight: Matrix) -> tuple[list[Tensor], bool]:
    """Returns the kernel's arguments for two factors, and whether they are in fp8."""
    if isinstance(x, Fp8Matrix) and isinstance(weight, Fp8Matrix):
        return [x.values, weight.values, x.scale, weight.scale], True
    assert isinstance(x, Tensor)
    assert isinstance(weight, Tensor)
    return [x, weight, x, weight], False  # the scales are not read


@triton.jit
def _add_parts_and_norm_kernel(
    states, parts, norm, out, scales, rows, eps,
    H: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Adds all parts of one row to its state, norms it, and perhaps rounds it to e4m3."""
    row = tl.program_id(0)
    h = tl.arange(0, BLOCK)
    real = h < H
    at = row * H + h
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts + split * rows * H + at, mask=real, other=0.0)
    total += tl.load(states + at, mask=real, other=0.0).to(tl.float32)
    state = total.to(states.dtype.element_ty)
    tl.store(states + at, state, mask=real)
    store_norm(state, norm, out, scales, eps, row, h, H, FP8)


def triton_add_product_and_norm(
    states: Tensor, x: Matrix, weight: Matrix, norm: Tensor, eps: float, *, in_fp8: bool = False
) -> Matrix:
    """Computes `products.add_product_and_norm`; the result is in fp8 if `in_fp8` asks for it."""
    factors, fp8 = _factors(x, weight)
    rows, inner = factors[0].shape
    columns = len(weight)
    parts = torch.empty(SPLITS, rows, columns, dtype=torch.float32, device=states.device)
    _product_kernel[(columns // _TILE_COLUMNS, SPLITS)](
        *factors, parts, rows, columns, inner, inner // SPLITS, M=_tile_rows(rows),
        N=_TILE_COLUMNS, STEP=_INNER_STEP, GATED=False, FP8=fp8, num_stages=6, num_warps=4,
    )  # fmt: skip
    out, scales = (
        empty_fp8(states.shape, states.device) if in_fp8 else (torch.empty_like(states), states)
    )
    _add_parts_and_norm_kernel[(rows,)](
        states, parts, norm, out, scales, rows, eps, H=columns, SPLITS=SPLITS,
        BLOCK=triton.next_power_of_2(columns), FP8=in_fp8, num_warps=8,
    )  # fmt: skip
    return Fp8Matrix(out, scales, states.dtype) if in_fp8 else out


@triton.jit
def _update_softmax(q, k, v, visible, scale, peak, total, mixed):
    """Adds keys and values (N, SIZE) to the running softmax of queries (M, SIZE)."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    s = tl.where(visible, s, float("-inf"))
    top = tl.maximum(peak, tl.max(s, 1))
    # A query that sees no key yet has the peak -inf, and -inf - -inf would be NaN.
    finite = tl.where(top == float("-inf"), 0.0, top)
    # Earlier sums were taken under the old peak, so they are scaled to the new one.
    rescale, e = tl.exp(peak - finite), tl.exp(s - finite[:, None])
    total = total * rescale + tl.sum(e, 1)
    mixed = tl.dot(e.to(v.dtype), v, mixed * rescale[:, None], input_precision="ieee")
    return top, total, mixed


@triton.jit
def _attend_chunk_kernel(
    qkv, cos, sin, cache, length, sums, peaks, capacity, scale, chunks,
    T: tl.constexpr, GROUP: tl.constexpr, KV: tl.constexpr, SIZE: tl.constexpr,
    M: tl.constexpr, NEW: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    ALONE: tl.constexpr,
):  # fmt: skip
    """Attends to one chunk of a sequence's cache for one key head; the last adds the new tokens.

    ALONE: the only chunk; `sums` is then the output.
    """
    row, head = tl.program_id(0) // KV, tl.program_id(0) % KV
    start = tl.program_id(1) * CHUNK
    before = tl.load(length + row).to(tl.int32)
    # Not >=: the chunk that begins at `before` takes the new tokens.
    if start > before:
        return
    cache_dtype = cache.dtype.element_ty
    width: tl.constexpr = (GROUP + 2) * KV * SIZE
    d = tl.arange(0, SIZE)
    m = tl.arange(0, M)
    # Row m of the tile is query head m // T of the key head, at new token m % T.
    query = row * T + m % T
    base = qkv + query * width + (head * GROUP + m // T) * SIZE
    q = load_rotated(base, query, d, cos, sin, m < GROUP * T, SIZE).to(cache_dtype)
    # Offsets into a large cache may exceed 32 bits.
    keys = cache + (row * 2 * KV + head).to(tl.int64) * capacity * SIZE + d[None, :]
    values = keys + KV * capacity * SIZE
    peak = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    mixed = tl.zeros((M, SIZE), tl.float32)
    for i in range(0, tl.minimum(CHUNK, before - start), BLOCK):
        p = (start + i + tl.arange(0, BLOCK))[:, None]
        k = tl.load(keys + p * SIZE, mask=p < before, other=0.0)
        v = tl.load(values + p * SIZE, mask=p < before, other=0.0)
        visible = tl.trans(p) < before
        peak, total, mixed = _update_softmax(q, k, v, visible, scale, peak, total, mixed)
    if start + CHUNK > before:
        t = tl.arange(0, NEW)
        source = qkv + (row * T + t) * width + (GROUP * KV + head) * SIZE
        k = load_rotated(source, row * T + t, d, cos, sin, t < T, SIZE).to(cache_dtype)
        real = (t < T)[:, None]
        v = tl.load(source[:, None] + KV * SIZE + d[None, :], mask=real, other=0.0).to(cache_dtype)
        place = (before + t)[:, None]
        # The cache of a sequence that has ended may be full.
        tl.store(keys + place * SIZE, k, mask=real & (place < capacity))
        tl.store(values + place * SIZE, v, mask=real & (place < capacity))
        visible = t[None, :] <= (m % T)[:, None]
        peak, total, mixed = _update_softmax(q, k, v, visible, scale, peak, total, mixed)
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
    qkv: Tensor, rope: tuple[Tensor, Tensor], cache: Tensor, length: Tensor, *, bucket: int
) -> Tensor:
    """Appends new keys and values to a layer's KV cache, and attends to all of it.

    Args:
        qkv: (sequences, T, queries, keys and values side by side), before rotation.
        rope: cosine and signed sine, (sequences * T, size) each.
        cache: (at least `sequences`, 2, kv heads, capacity, size), written in place.
        length: (at least `sequences`,), the tokens that each sequence has in the cache already.
        bucket: at least as many as any running sequence has afterwards; sets the number of chunks.

    Returns:
        (sequences, T, heads * size).
    """
    rows, count, width = qkv.shape
    _, _, kv, capacity, size = cache.shape
    # For each key head there are `group` query heads, one key and one value.
    group = width // size // kv - 2
    queries = _tile_rows(group * count)
    # The tiles of several new tokens leave room for small blocks only.
    heads = rows * kv if count == 1 else 1
    chunk, block = next((c, b) for most, c, b in CACHE_CHUNKS if heads <= most)
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
        qkv, *rope, cache, length, sums, peaks, capacity, size**-0.5, chunks, **shape,
        NEW=_tile_rows(count), BLOCK=block, ALONE=chunks == 1, num_stages=2,
        num_warps=max(2, queries // 16),
    )  # fmt: skip
    if chunks > 1:
        _combine_chunks_kernel[(rows * kv, group * count)](
            sums, peaks, length, out, chunks, **shape,
            PADDED=triton.next_power_of_2(chunks), num_warps=2,
        )  # fmt: skip
    return out


def _tile_rows(rows: int) -> int:
    """Returns the rows of a tile: a power of two, at least the 16 that tensor cores need."""
    return max(16, int(triton.next_power_of_2(rows)))
