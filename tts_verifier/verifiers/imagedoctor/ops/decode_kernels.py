"""Triton kernels of the products of a decode step.

Decoding is memory-bound: its cost is reading each weight once, for some 32 sequences at a time.
Products are split over their inner width to keep the whole GPU reading; one more kernel adds the
parts to the states and norms them. All sums have a fixed order, so results are reproducible.
Import this module only where Triton is installed.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.ops.fp8 import Fp8Matrix, Matrix
from tts_verifier.verifiers.imagedoctor.ops.row_kernels import (
    empty_fp8,
    store_norm,
    tile_rows,
)

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
        *factors, out, rows, columns, inner, inner, M=tile_rows(rows), N=_TILE_COLUMNS,
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
        *factors, parts, rows, columns, inner, inner // SPLITS, M=tile_rows(rows),
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
