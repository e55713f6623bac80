"""Triton kernels for chains of element-wise operations.

Between its matrix products a model passes over small tensors many times, and on a GPU each pass
costs a kernel launch and a trip through memory. One kernel here does a whole chain in one pass.
`pointwise` defines what each chain computes, and runs it without Triton too. Import this module
only where Triton is installed.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl
from torch import Tensor, channels_last, empty_like

from tts_verifier.verifiers.imagedoctor.ops.row_kernels import round_to_int8, scale_of_int8

_GATE_COLUMNS: Final = 1024
"""Columns that one program of the gate's kernel processes."""
_ROTATE_VECTORS: Final = 32
"""Head vectors that one program of the rotation's kernel processes."""
_NORM_VALUES: Final = 4096
"""Values, of whole pixels, that one program of the norm's kernel processes; the weighing's too."""


@triton.jit
def _silu_gate_kernel(both, out, columns, BLOCK: tl.constexpr):
    # Offsets may exceed 32 bits: rows times width of a whole batch.
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = at < columns
    gate = tl.load(both + row * 2 * columns + at, mask=real).to(tl.float32)
    value = tl.load(both + row * 2 * columns + columns + at, mask=real).to(tl.float32)
    tl.store(out + row * columns + at, gate * tl.sigmoid(gate) * value, mask=real)


def triton_silu_gate(both: Tensor) -> Tensor:
    """Computes `pointwise.silu_gate`, (M, 2 N) -> (M, N)."""
    rows, columns = both.shape[0], both.shape[1] // 2
    out = both.new_empty(rows, columns)
    _silu_gate_kernel[(rows, triton.cdiv(columns, _GATE_COLUMNS))](
        both, out, columns, BLOCK=_GATE_COLUMNS
    )
    return out


@triton.jit
def _rotate_heads_kernel(
    heads, cos, sin, vectors, all_heads,
    ROTATED: tl.constexpr, HALF: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    vector = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, PADDED)
    real = (vector < vectors)[:, None] & (d < HALF)[None, :]
    token = vector // ROTATED
    low = ((token * all_heads + vector % ROTATED) * 2 * HALF)[:, None] + d[None, :]
    angle = (token * 2 * HALF)[:, None] + d[None, :]
    x = tl.load(heads + low, mask=real).to(tl.float32)
    y = tl.load(heads + low + HALF, mask=real).to(tl.float32)
    # Both halves are loaded before either is stored, so the kernel can work in place.
    first = x * tl.load(cos + angle, mask=real) + y * tl.load(sin + angle, mask=real)
    angle += HALF
    second = y * tl.load(cos + angle, mask=real) + x * tl.load(sin + angle, mask=real)
    tl.store(heads + low, first, mask=real)
    tl.store(heads + low + HALF, second, mask=real)


def triton_rotate_heads(heads: Tensor, cos: Tensor, sin: Tensor, rotated: int) -> Tensor:
    """Computes `pointwise.rotate_heads` in place, and returns `heads`."""
    tokens, all_heads, size = heads.shape
    half = size // 2
    _rotate_heads_kernel[(triton.cdiv(tokens * rotated, _ROTATE_VECTORS),)](
        heads, cos, sin, tokens * rotated, all_heads,
        ROTATED=rotated, HALF=half, PADDED=triton.next_power_of_2(half), BLOCK=_ROTATE_VECTORS,
    )  # fmt: skip
    return heads


@triton.jit
def _rotate_and_store_kernel(
    heads, cos, sin, at, cache, scales, vectors, tokens, capacity,
    ALL: tl.constexpr, KV: tl.constexpr, HALF: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """Rotates queries and keys in place; copies keys and values into a KV cache as well.

    INT8: the cache has scales.
    """
    vector = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, PADDED)
    token, head = vector // ALL, vector % ALL
    is_real = vector < vectors
    is_rotated = head < ALL - KV
    is_kept = is_real & (head >= ALL - 2 * KV)
    inside = (d < HALF)[None, :]
    low = (vector * 2 * HALF)[:, None] + d[None, :]
    angle = (token * 2 * HALF)[:, None] + d[None, :]
    # A value turns by no angle.
    turns = (is_real & is_rotated)[:, None] & inside
    c = tl.load(cos + angle, mask=turns, other=1.0).to(tl.float32)
    s = tl.load(sin + angle + HALF, mask=turns, other=0.0).to(tl.float32)
    real = is_real[:, None] & inside
    x = tl.load(heads + low, mask=real, other=0.0).to(tl.float32)
    y = tl.load(heads + low + HALF, mask=real, other=0.0).to(tl.float32)
    first, second = x * c - y * s, y * c + x * s
    tl.store(heads + low, first, mask=turns)
    tl.store(heads + low + HALF, second, mask=turns)
    # Keys come before values, in the cache as well.
    kept = tl.load(at + token // tokens, mask=is_kept, other=0) * 2 * KV + head - (ALL - 2 * KV)
    vector = kept * capacity + token % tokens
    place = (vector * 2 * HALF)[:, None] + d[None, :]
    mask = is_kept[:, None] & inside
    if INT8:
        peak = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
        tl.store(scales + vector, scale_of_int8(peak), mask=is_kept)
        tl.store(cache + place, round_to_int8(first, peak), mask=mask)
        tl.store(cache + place + HALF, round_to_int8(second, peak), mask=mask)
    else:
        tl.store(cache + place, first, mask=mask)
        tl.store(cache + place + HALF, second, mask=mask)


def triton_rotate_and_store(
    heads: Tensor, cos: Tensor, sin: Tensor, at: Tensor, cache: Tensor, scales: Tensor | None
) -> None:
    """Rotates queries and keys in place, and puts keys and values into a KV cache.

    Args:
        heads: (N, T, queries + 2 * kv heads, size): queries, keys, values.
        cos: (N * T, size).
        sin: (N * T, size), negated in its first half.
        at: (N,), the sequence of the cache that each row belongs to.
        cache: (sequences, 2, kv heads, capacity, size), written from the first token on.
        scales: of a cache in int8, (…, capacity, 1), written likewise.
    """
    rows, tokens, all_heads, size = heads.shape
    _, _, kv, capacity, _ = cache.shape
    vectors, half = rows * tokens * all_heads, size // 2
    _rotate_and_store_kernel[(triton.cdiv(vectors, _ROTATE_VECTORS),)](
        heads, cos, sin, at, cache, cache if scales is None else scales, vectors, tokens, capacity,
        ALL=all_heads, KV=kv, HALF=half, PADDED=triton.next_power_of_2(half),
        BLOCK=_ROTATE_VECTORS, INT8=scales is not None,
    )  # fmt: skip


@triton.jit
def _channel_norm_kernel(
    x, bias, scale, added, out, pixels, eps,
    C: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    ADD: tl.constexpr, RELU_FIRST: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, PADDED)
    real = (pixel < pixels)[:, None] & (c < C)[None, :]
    at = (pixel * C)[:, None] + c[None, :]
    value = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
    value += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if RELU_FIRST:
        value = tl.maximum(value, 0.0)
    mean = tl.sum(value * value, 1) / C
    value *= tl.rsqrt(mean + eps)[:, None]
    value *= tl.load(scale + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if ADD:
        value += tl.load(added + at, mask=real, other=0.0).to(tl.float32)
    if not RELU_FIRST:
        value = tl.maximum(value, 0.0)
    tl.store(out + at, value, mask=real)


def triton_channel_norm(
    x: Tensor, bias: Tensor, scale: Tensor, *, add: Tensor | None, relu_first: bool, eps: float
) -> Tensor:
    """Adds a bias and divides by the root mean square over channels, with a ReLU and a sum.

    Args:
        x: (N, C, H, W).
        bias: (C,), added first.
        scale: C values, multiplied after the norm.
        add: (N, C, H, W), added after the norm; None = nothing.
        relu_first: applies the ReLU before the norm; otherwise it comes last, after `add`.
        eps: added to the mean square.

    Returns:
        (N, C, H, W) in channels-last memory.
    """
    # The channels of a pixel, which the norm sums, become contiguous.
    x = x.contiguous(memory_format=channels_last)
    count, channels, h, w = x.shape
    out = empty_like(x)
    added = x if add is None else add.contiguous(memory_format=channels_last)
    # Triton's ranges must be powers of two; a mask hides the rest.
    padded = triton.next_power_of_2(channels)
    block = max(1, _NORM_VALUES // padded)
    _channel_norm_kernel[(triton.cdiv(count * h * w, block),)](
        x, bias, scale, added, out, count * h * w, eps, C=channels, PADDED=padded, BLOCK=block,
        ADD=add is not None, RELU_FIRST=relu_first,
    )  # fmt: skip
    return out


@triton.jit
def _weigh_channels_kernel(
    x, bias, weights, out, pixels, C: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, PADDED)
    real = (pixel < pixels)[:, None] & (c < C)[None, :]
    at = ((image * pixels + pixel) * C)[:, None] + c[None, :]
    value = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
    value += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    weight = tl.load(weights + image * C + c, mask=c < C, other=0.0).to(tl.float32)
    total = tl.sum(tl.maximum(value, 0.0) * weight[None, :], 1)
    tl.store(out + image * pixels + pixel, total, mask=pixel < pixels)


def triton_weigh_channels(x: Tensor, bias: Tensor, weights: Tensor) -> Tensor:
    """Adds a bias, applies a ReLU, and sums over channels with weights for each image.

    Args:
        x: (N, C, H, W).
        bias: (C,).
        weights: (N, C).

    Returns:
        (N, H, W).
    """
    x = x.contiguous(memory_format=channels_last)
    count, channels, h, w = x.shape
    out = x.new_empty(count, h, w)
    padded = triton.next_power_of_2(channels)
    block = max(1, _NORM_VALUES // padded)
    _weigh_channels_kernel[triton.cdiv(h * w, block), count](
        x, bias, weights.contiguous(), out, h * w, C=channels, PADDED=padded, BLOCK=block
    )
    return out
