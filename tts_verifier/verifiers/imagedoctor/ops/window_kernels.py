"""A Triton kernel for the vision tower's attention within windows.

A window has at most a few dozen tokens, so one program holds one head of a window whole: it
rotates queries and keys as it loads them, and neither rotated heads nor attention weights are ever
written to memory. Import this module only where Triton is installed.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def load_rotated(base, token, d, cos, sin, real, SIZE: tl.constexpr):
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
def _attend_windows_kernel(
    qkv, cos, sin, starts, out, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Computes the attention of one head within one window."""
    window, head = tl.program_id(0), tl.program_id(1)
    start = tl.load(starts + window)
    end = tl.load(starts + window + 1)
    token = start + tl.arange(0, TOKENS)
    d = tl.arange(0, CHANNELS)
    real = token < end
    # Offsets may exceed 32 bits: tokens times width of a whole batch.
    base = qkv + token.to(tl.int64) * (3 * HEADS * SIZE) + head * SIZE
    dtype = qkv.dtype.element_ty
    q = load_rotated(base, token, d, cos, sin, real, SIZE).to(dtype)
    k = load_rotated(base + HEADS * SIZE, token, d, cos, sin, real, SIZE).to(dtype)
    inside = real[:, None] & (d < SIZE)[None, :]
    v = tl.load(base[:, None] + 2 * HEADS * SIZE + d[None, :], mask=inside, other=0.0)
    # "ieee" concerns float32 only, which tests use: without it tensor cores would round to TF32.
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    s = tl.where(real[None, :], s, float("-inf"))
    e = tl.exp(s - tl.max(s, 1)[:, None])
    total = tl.sum(e, 1)
    mixed = tl.dot(e.to(dtype), v, input_precision="ieee") / total[:, None]
    place = out + token.to(tl.int64)[:, None] * (HEADS * SIZE) + head * SIZE + d[None, :]
    tl.store(place, mixed, mask=inside)


def triton_attend_windows(
    heads: Tensor, rope: tuple[Tensor, Tensor], starts: Tensor, longest: int
) -> Tensor:
    """Rotates queries and keys, and attends within windows.

    Args:
        heads: (T, 3 * heads, size): queries, keys and values, before rotation.
        rope: cosine and signed sine, (T, size) each.
        starts: (windows + 1,), the first token of each window, and T.
        longest: the tokens of the longest window.

    Returns:
        (T, heads * size).
    """
    tokens, all_heads, size = heads.shape
    count = all_heads // 3
    out = heads.new_empty(tokens, count * size)
    _attend_windows_kernel[len(starts) - 1, count](
        heads, *rope, starts, out, size**-0.5, HEADS=count, SIZE=size,
        TOKENS=max(16, triton.next_power_of_2(longest)),
        CHANNELS=max(16, triton.next_power_of_2(size)), num_warps=4,
    )  # fmt: skip
    return out
