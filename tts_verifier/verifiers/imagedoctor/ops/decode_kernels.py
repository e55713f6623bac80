"""Kernels of a decoding step on a GPU, where reading every weight once is all there is.

A step multiplies some 32 rows by every weight, and attends to a past of a thousand tokens.
Products are split over their inner width, so that all of the GPU reads at a time; the parts
are joined, added to the states and normed in one go. The past is cut into chunks that are
attended to side by side and joined after (Flash-Decoding, Dao et al. 2023); query heads that
share a key head go together. All sums are taken in a fixed order. Only imported on a GPU.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK: Final = 128
"""Tokens of the past that one program attends to."""
SPLITS: Final = 2
"""Parts of a product's inner width."""
WHOLE: Final = 256
"""Every size of a weight must be a multiple of this: tiles are not cut."""

# Columns and inner steps of a tile, the fastest of some two hundred on an H100.
_COLUMNS: Final = 32
_STEP: Final = 128
_BLOCK: Final = 32


@triton.jit
def _product(
    x, w, out, rows, columns, K: tl.constexpr, SHARE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """out = x @ w.T for N columns and a share of K; gated: w[columns + n] holds values."""
    m = tl.arange(0, M)
    n = tl.program_id(0) * N + tl.arange(0, N)
    split = tl.program_id(1)
    k = split * SHARE + tl.arange(0, STEP)
    real = (m < rows)[:, None]
    inputs = x + m[:, None] * K + k[None, :]
    weights = w + n[None, :] * K + k[:, None]
    total = tl.zeros((M, N), tl.float32)
    value = tl.zeros((M, N), tl.float32)
    for start in range(0, SHARE, STEP):
        part = tl.load(inputs + start, mask=real, other=0.0)
        total = tl.dot(part, tl.load(weights + start), total, input_precision="ieee")
        if GATED:
            values = tl.load(weights + start + columns * K)
            value = tl.dot(part, values, value, input_precision="ieee")
    if GATED:
        total = total * tl.sigmoid(total) * value
    tl.store(out + (split * rows + m[:, None]) * columns + n[None, :], total, mask=real)


def gated_product(x: Tensor, weight: Tensor) -> Tensor:
    """See `layers.gated_product`."""
    rows, inner = x.shape
    columns = len(weight) // 2
    out = x.new_empty(rows, columns)
    _product[(columns // _COLUMNS, 1)](
        x, weight, out, rows, columns, inner, inner, M=_padded(rows), N=_COLUMNS, STEP=_STEP,
        GATED=True, num_stages=3, num_warps=2,
    )  # fmt: skip
    return out


@triton.jit
def _settled(
    states, parts, norm, out, rows, eps,
    H: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds all parts of one row to its state, and norms it."""
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
    wide = state.to(tl.float32)
    wide *= tl.rsqrt(tl.sum(wide * wide, 0) / H + eps)
    wide *= tl.load(norm + h, mask=real, other=0.0).to(tl.float32)
    tl.store(out + at, wide, mask=real)


def add_product(states: Tensor, x: Tensor, weight: Tensor, norm: Tensor, eps: float) -> Tensor:
    """See `layers.add_product`."""
    rows, inner = x.shape
    columns = len(weight)
    parts = torch.empty(SPLITS, rows, columns, dtype=torch.float32, device=x.device)
    _product[(columns // _COLUMNS, SPLITS)](
        x, weight, parts, rows, columns, inner, inner // SPLITS, M=_padded(rows), N=_COLUMNS,
        STEP=_STEP, GATED=False, num_stages=6, num_warps=4,
    )  # fmt: skip
    out = torch.empty_like(states)
    _settled[(rows,)](
        states, parts, norm, out, rows, eps, H=columns, SPLITS=SPLITS,
        BLOCK=triton.next_power_of_2(columns), num_warps=8,
    )  # fmt: skip
    return out


@triton.jit
def _turned(base, token, d, cos, sin, real, SIZE: tl.constexpr):
    """Loads vectors (A, SIZE) at `base` (A,), turned by the angles of `token` (A,)."""
    other = (d + SIZE // 2) % SIZE
    x = tl.load(base[:, None] + d[None, :], mask=real[:, None], other=0.0).to(tl.float32)
    y = tl.load(base[:, None] + other[None, :], mask=real[:, None], other=0.0).to(tl.float32)
    at = token[:, None] * SIZE + d[None, :]
    c = tl.load(cos + at, mask=real[:, None], other=0.0).to(tl.float32)
    s = tl.load(sin + at, mask=real[:, None], other=0.0).to(tl.float32)
    return x * c + y * s


@triton.jit
def _mixed(q, k, v, seen, scale, peak, total, mixed):
    """Takes keys and values (N, SIZE) into the running softmax of queries (M, SIZE)."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    s = tl.where(seen, s, float("-inf"))
    top = tl.maximum(peak, tl.max(s, 1))
    finite = tl.where(top == float("-inf"), 0.0, top)
    keep, e = tl.exp(peak - finite), tl.exp(s - finite[:, None])
    total = total * keep + tl.sum(e, 1)
    mixed = tl.dot(e.to(v.dtype), v, mixed * keep[:, None], input_precision="ieee")
    return top, total, mixed


@triton.jit
def _chunk(
    qkv, cos, sin, past, length, sums, peaks, room, scale, chunks,
    T: tl.constexpr, GROUP: tl.constexpr, KV: tl.constexpr, SIZE: tl.constexpr,
    M: tl.constexpr, NEW: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row, one key head, one chunk of the past; the last chunk takes in the new tokens."""
    row, head = tl.program_id(0) // KV, tl.program_id(0) % KV
    start = tl.program_id(1) * CHUNK
    before = tl.load(length + row).to(tl.int32)
    if start > before:
        return
    kind = past.dtype.element_ty
    width: tl.constexpr = (GROUP + 2) * KV * SIZE
    d = tl.arange(0, SIZE)
    m = tl.arange(0, M)
    asking = row * T + m % T
    base = qkv + asking * width + (head * GROUP + m // T) * SIZE
    q = _turned(base, asking, d, cos, sin, m < GROUP * T, SIZE).to(kind)
    keys = past + (row * 2 * KV + head).to(tl.int64) * room * SIZE + d[None, :]
    values = keys + KV * room * SIZE
    peak = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    mixed = tl.zeros((M, SIZE), tl.float32)
    for i in range(0, CHUNK, BLOCK):
        p = (start + i + tl.arange(0, BLOCK))[:, None]
        k = tl.load(keys + p * SIZE, mask=p < before, other=0.0)
        v = tl.load(values + p * SIZE, mask=p < before, other=0.0)
        seen = tl.trans(p) < before
        peak, total, mixed = _mixed(q, k, v, seen, scale, peak, total, mixed)
    if start + CHUNK > before:
        t = tl.arange(0, NEW)
        source = qkv + (row * T + t) * width + (GROUP * KV + head) * SIZE
        k = _turned(source, row * T + t, d, cos, sin, t < T, SIZE).to(kind)
        real = (t < T)[:, None]
        v = tl.load(source[:, None] + KV * SIZE + d[None, :], mask=real, other=0.0).to(kind)
        place = (before + t)[:, None]
        tl.store(keys + place * SIZE, k, mask=real & (place < room))
        tl.store(values + place * SIZE, v, mask=real & (place < room))
        seen = t[None, :] <= (m % T)[:, None]
        peak, total, mixed = _mixed(q, k, v, seen, scale, peak, total, mixed)
    at = (tl.program_id(0) * chunks + tl.program_id(1)) * M + m
    tl.store(sums + at[:, None] * SIZE + d[None, :], mixed)
    tl.store(peaks + at * 2, peak)
    tl.store(peaks + at * 2 + 1, total)


@triton.jit
def _joined(
    sums, peaks, length, out, chunks,
    T: tl.constexpr, GROUP: tl.constexpr, KV: tl.constexpr, SIZE: tl.constexpr,
    M: tl.constexpr, CHUNK: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Joins the chunks of one row and one query."""
    row, head = tl.program_id(0) // KV, tl.program_id(0) % KV
    m = tl.program_id(1)
    d = tl.arange(0, SIZE)
    c = tl.arange(0, PADDED)
    filled = (c < chunks) & (c * CHUNK <= tl.load(length + row))
    at = (tl.program_id(0) * chunks + c) * M + m
    peak = tl.load(peaks + at * 2, mask=filled, other=float("-inf"))
    weight = tl.exp(peak - tl.max(peak, 0))
    total = tl.sum(weight * tl.load(peaks + at * 2 + 1, mask=filled, other=0.0), 0)
    part = tl.load(sums + at[:, None] * SIZE + d[None, :], mask=filled[:, None], other=0.0)
    mixed = tl.sum(part * weight[:, None], 0) / total
    place = ((row * T + m % T) * KV * GROUP + head * GROUP + m // T) * SIZE
    tl.store(out + place + d, mixed)


def attended(
    qkv: Tensor, turn: tuple[Tensor, Tensor], past: Tensor, length: Tensor, *, bucket: int
) -> Tensor:
    """Puts new keys and values into the past, and attends to all of it.

    Args:
        qkv: (rows, T, joined), before rotation.
        turn: cosine and signed sine, (rows * T, size) each.
        past: (at least rows, 2, kv heads, room, size).
        length: (at least rows,), tokens that are there before.
        bucket: at least as many as are there after, in all rows that count.

    Returns:
        (rows, T, heads * size).
    """
    rows, count, width = qkv.shape
    _, _, kv, room, size = past.shape
    group = width // size // kv - 2
    wide, chunks = _padded(group * count), triton.cdiv(bucket, CHUNK)
    shape: dict[str, Any] = {
        "T": count, "GROUP": group, "KV": kv, "SIZE": size, "M": wide, "CHUNK": CHUNK,
    }  # fmt: skip
    # Whatever torch's default is: parts of a sum are kept whole.
    whole: dict[str, Any] = {"dtype": torch.float32, "device": qkv.device}
    sums = torch.empty(rows * kv, chunks, wide, size, **whole)
    peaks = torch.empty(rows * kv, chunks, wide, 2, **whole)
    out = qkv.new_empty(rows, count, group * kv * size)
    _chunk[(rows * kv, chunks)](
        qkv, *turn, past, length, sums, peaks, room, size**-0.5, chunks, **shape,
        NEW=_padded(count), BLOCK=_BLOCK, num_stages=2, num_warps=max(2, wide // 16),
    )  # fmt: skip
    _joined[(rows * kv, group * count)](
        sums, peaks, length, out, chunks, **shape,
        PADDED=triton.next_power_of_2(chunks), num_warps=2,
    )  # fmt: skip
    return out


def _padded(rows: int) -> int:
    """Returns the rows of a tile: a power of two, not below what tensor cores take."""
    return max(16, int(triton.next_power_of_2(rows)))
