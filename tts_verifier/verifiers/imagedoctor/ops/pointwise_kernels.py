"""Chains of element-wise operations that a GPU runs as one kernel.

Between its matrix products a model moves small tensors many times; on a GPU each move costs a
kernel's launch and a trip through memory. `chains` says what each computes, and runs that
instead where there is no Triton. Only imported on a GPU.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl
from torch import Tensor, channels_last, empty_like

_COLUMNS: Final = 1024
_VECTORS: Final = 32
_VALUES: Final = 4096


@triton.jit
def _gated(both, out, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = at < columns
    gate = tl.load(both + row * 2 * columns + at, mask=real).to(tl.float32)
    value = tl.load(both + row * 2 * columns + columns + at, mask=real).to(tl.float32)
    tl.store(out + row * columns + at, gate * tl.sigmoid(gate) * value, mask=real)


def gated(both: Tensor) -> Tensor:
    """See `chains.gated`."""
    rows, columns = both.shape[0], both.shape[1] // 2
    out = both.new_empty(rows, columns)
    _gated[(rows, triton.cdiv(columns, _COLUMNS))](both, out, columns, BLOCK=_COLUMNS)
    return out


@triton.jit
def _rotated(
    heads, cos, sin, vectors, all_heads,
    TURNED: tl.constexpr, HALF: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    vector = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, PADDED)
    real = (vector < vectors)[:, None] & (d < HALF)[None, :]
    token = vector // TURNED
    low = ((token * all_heads + vector % TURNED) * 2 * HALF)[:, None] + d[None, :]
    angle = (token * 2 * HALF)[:, None] + d[None, :]
    x = tl.load(heads + low, mask=real).to(tl.float32)
    y = tl.load(heads + low + HALF, mask=real).to(tl.float32)
    first = x * tl.load(cos + angle, mask=real) + y * tl.load(sin + angle, mask=real)
    angle += HALF
    second = y * tl.load(cos + angle, mask=real) + x * tl.load(sin + angle, mask=real)
    tl.store(heads + low, first, mask=real)
    tl.store(heads + low + HALF, second, mask=real)


def rotated(heads: Tensor, cos: Tensor, sin: Tensor, turned: int) -> Tensor:
    """See `chains.rotated`; in place."""
    tokens, all_heads, size = heads.shape
    half = size // 2
    _rotated[(triton.cdiv(tokens * turned, _VECTORS),)](
        heads, cos, sin, tokens * turned, all_heads,
        TURNED=turned, HALF=half, PADDED=triton.next_power_of_2(half), BLOCK=_VECTORS,
    )  # fmt: skip
    return heads


@triton.jit
def _channel_norm(
    x, bias, scale, added, out, pixels, eps,
    C: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    ADD: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, PADDED)
    real = (pixel < pixels)[:, None] & (c < C)[None, :]
    at = (pixel * C)[:, None] + c[None, :]
    value = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
    value += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if EARLY:
        value = tl.maximum(value, 0.0)
    mean = tl.sum(value * value, 1) / C
    value *= tl.rsqrt(mean + eps)[:, None]
    value *= tl.load(scale + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if ADD:
        value += tl.load(added + at, mask=real, other=0.0).to(tl.float32)
    if not EARLY:
        value = tl.maximum(value, 0.0)
    tl.store(out + at, value, mask=real)


def channel_norm(
    x: Tensor, bias: Tensor, scale: Tensor, *, add: Tensor | None, early: bool, eps: float
) -> Tensor:
    """(N, C, H, W), channels last: adds a bias and divides by the root mean square over channels.

    A ReLU comes before the norm if `early`, else at the end, after `add`.
    """
    x = x.contiguous(memory_format=channels_last)
    count, channels, h, w = x.shape
    out = empty_like(x)
    added = x if add is None else add.contiguous(memory_format=channels_last)
    padded = triton.next_power_of_2(channels)
    block = max(1, _VALUES // padded)
    _channel_norm[(triton.cdiv(count * h * w, block),)](
        x, bias, scale, added, out, count * h * w, eps, C=channels, PADDED=padded, BLOCK=block,
        ADD=add is not None, EARLY=early,
    )  # fmt: skip
    return out
