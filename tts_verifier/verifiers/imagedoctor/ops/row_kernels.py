"""Triton kernels that work on whole rows, most of which end by rounding them to 8 bits.

A row's scale follows from its largest value, so one program computes a whole row. `fp8` and
`products` define what each kernel computes, and run it without Triton too. Import this module
only where Triton is installed.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.ops.e4m3 import DTYPE, LARGEST, SMALLEST_PEAK

_LARGEST = tl.constexpr(LARGEST)
_SMALLEST_PEAK = tl.constexpr(SMALLEST_PEAK)
_WIDE: Final = 4096
"""Rows of more values than this take eight warps."""


@triton.jit
def store_quantised(x, values, scales, row, at, real):
    """Stores one row as e4m3 with its scale."""
    peak = tl.max(tl.where(real, tl.abs(x), 0.0), 0)
    scale = tl.maximum(peak, _SMALLEST_PEAK) / _LARGEST
    quotient = tl.minimum(tl.maximum(x / scale, -_LARGEST), _LARGEST)
    tl.store(values + at, quotient.to(values.dtype.element_ty), mask=real)
    tl.store(scales + row, scale)


@triton.jit
def round_to_int8(x, peak):
    """Rounds vectors (A, D), whose largest values are `peak` (A,), to integers of up to 127."""
    return tl.floor(x * (127.0 / tl.maximum(peak, _SMALLEST_PEAK))[:, None] + 0.5).to(tl.int8)


@triton.jit
def scale_of_int8(peak):
    """Returns what the integers of `round_to_int8` count in, (A,)."""
    return tl.maximum(peak, _SMALLEST_PEAK) / 127.0


@triton.jit
def store_norm(
    state, norm, out, scales, eps, row, h, H: tl.constexpr, FP8: tl.constexpr
):  # fmt: skip
    """Stores the RMS norm of one row of states, as e4m3 with its scale if FP8."""
    at, real = row * H + h, h < H
    # The norm reads the state as it was rounded on storing, as torch's does.
    wide = state.to(tl.float32)
    wide *= tl.rsqrt(tl.sum(wide * wide, 0) / H + eps)
    wide *= tl.load(norm + h, mask=real, other=0.0).to(tl.float32)
    if FP8:
        store_quantised(wide, out, scales, row, at, real)
    else:
        tl.store(out + at, wide, mask=real)


@triton.jit
def _quantise_rows_kernel(x, values, scales, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    at = row * columns + c
    wide = tl.load(x + at, mask=c < columns, other=0.0).to(tl.float32)
    store_quantised(wide, values, scales, row, at, c < columns)


@triton.jit
def _gate_rows_kernel(both, values, scales, columns, BLOCK: tl.constexpr):
    """Computes a row of `pointwise.silu_gate`, and rounds it to e4m3."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    real = c < columns
    gate = tl.load(both + row * 2 * columns + c, mask=real, other=0.0).to(tl.float32)
    value = tl.load(both + (row * 2 + 1) * columns + c, mask=real, other=0.0).to(tl.float32)
    store_quantised(gate * tl.sigmoid(gate) * value, values, scales, row, row * columns + c, real)


@triton.jit
def _norm_rows_kernel(
    states, added, norm, values, scales, eps,
    H: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Adds to a row of states, in place, norms it, and perhaps rounds the result to e4m3."""
    row = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK)
    real = h < H
    at = row * H + h
    state = tl.load(states + at, mask=real, other=0.0)
    if ADD:
        total = state.to(tl.float32) + tl.load(added + at, mask=real, other=0.0).to(tl.float32)
        state = total.to(states.dtype.element_ty)
        tl.store(states + at, state, mask=real)
    store_norm(state, norm, values, scales, eps, row, h, H, FP8)


def triton_quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Computes `fp8.quantise_rows`: (M, K) -> values (M, K) and scales (M,)."""
    x = x.contiguous()
    values, scales = empty_fp8(x.shape, x.device)
    _quantise_rows_kernel[(len(x),)](x, values, scales, x.shape[1], **_launch_options(x.shape[1]))
    return values, scales


def triton_gate_rows(both: Tensor) -> tuple[Tensor, Tensor]:
    """Computes `pointwise.silu_gate` of (M, 2 N): values (M, N) and scales (M,)."""
    columns = both.shape[1] // 2
    values, scales = empty_fp8(torch.Size((len(both), columns)), both.device)
    _gate_rows_kernel[(len(both),)](both, values, scales, columns, **_launch_options(columns))
    return values, scales


def triton_norm_rows(
    states: Tensor, added: Tensor | None, norm: Tensor, eps: float, *, fp8: bool
) -> tuple[Tensor, Tensor]:
    """Adds (M, H) to the states, in place, and norms them.

    Returns:
        The norm (M, H), and with `fp8` the scales (M,) of its values.
    """
    values, scales = (
        empty_fp8(states.shape, states.device) if fp8 else (torch.empty_like(states), norm)
    )
    _norm_rows_kernel[(len(states),)](
        states, states if added is None else added, norm, values, scales, eps,
        H=states.shape[1], ADD=added is not None, FP8=fp8, **_launch_options(states.shape[1]),
    )  # fmt: skip
    return values, scales


def empty_fp8(shape: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns values (M, K) and scales (M,) to be filled."""
    values = torch.empty(shape, dtype=DTYPE, device=device)
    return values, torch.empty(shape[0], dtype=torch.float32, device=device)


def _launch_options(columns: int) -> dict[str, int]:
    return {"BLOCK": triton.next_power_of_2(columns), "num_warps": 8 if columns > _WIDE else 4}


def tile_rows(rows: int) -> int:
    """Returns the rows of a tile: a power of two, at least the 16 that tensor cores need."""
    return max(16, int(triton.next_power_of_2(rows)))
