"""Matrices of 8-bit floating-point numbers (e4m3) with a scale for each row, and their products.

Weights have a scale for each output channel, activations one for each token; both follow from
the largest value of the row, so no calibration data is needed. Source: Micikevicius et al. 2022,
FP8 Formats for Deep Learning, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from tts_verifier.verifiers.imagedoctor.ops.e4m3 import DTYPE, LARGEST, SMALLEST_PEAK
from tts_verifier.verifiers.imagedoctor.ops.fused_weights import fuse_rows
from tts_verifier.verifiers.imagedoctor.ops.pointwise import use_triton


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Matrix:
    """A matrix in e4m3; row i stands for `values[i] * scale[i]`."""

    values: Tensor
    """(M, K), float8_e4m3fn."""
    scale: Tensor
    """(M,), float32."""
    dtype: torch.dtype
    """The dtype that it was rounded from, which products of it have."""

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.values)

    def to(self, device: torch.device) -> Fp8Matrix:
        """Returns the matrix on a device."""
        return Fp8Matrix(self.values.to(device), self.scale.to(device), self.dtype)

    def dequantise(self) -> Tensor:
        """Returns the matrix (M, K) in float32."""
        return self.values.float() * self.scale[:, None]


Matrix = Tensor | Fp8Matrix
"""A weight (out, in), or rows of activations (M, K)."""


class Fp8Linear(nn.Module):
    """A linear layer whose weight is in e4m3, made from one in 16 or 32 bits.

    Moves between devices and never changes its dtype.

    Args:
        layer: the layer that it replaces.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        quantised = quantise_rows(layer.weight.detach())
        self.weight: Tensor
        self.scale: Tensor
        self.register_buffer("weight", quantised.values)
        self.register_buffer("scale", quantised.scale)
        self.bias = layer.bias
        self.dtype = quantised.dtype

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        rows = quantise_rows(x.flatten(0, -2))
        out = multiply(rows, Fp8Matrix(self.weight, self.scale, self.dtype), self.bias)
        return out.view(*x.shape[:-1], -1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the layer; a change of dtype reaches the bias only."""
        device = fn(torch.empty(0, device=self.scale.device)).device
        weight, scale = self.weight.to(device), self.scale.to(device)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.weight, self.scale = weight, scale
        return self


def matrix_of(layer: nn.Linear | Fp8Linear) -> Matrix:
    """Returns a layer's weight."""
    if isinstance(layer, Fp8Linear):
        return Fp8Matrix(layer.weight, layer.scale, layer.dtype)
    weight: Tensor = layer.weight
    return weight


def fuse_linears(layers: Sequence[Any], *, gap: int = 0) -> Matrix:
    """Fuses the weights of layers with a common input, as `fuse_rows` does."""
    weight = fuse_rows([layer.weight for layer in layers], gap=gap)
    first = layers[0]
    if not isinstance(first, Fp8Linear):
        return weight
    return Fp8Matrix(weight, fuse_rows([layer.scale for layer in layers], gap=gap), first.dtype)


def quantise_rows(x: Tensor) -> Fp8Matrix:
    """Rounds each row (M, K) to e4m3, scaled so that its largest value becomes `LARGEST`."""
    if use_triton(x):
        from tts_verifier.verifiers.imagedoctor.ops import row_kernels

        return Fp8Matrix(*row_kernels.triton_quantise_rows(x), x.dtype)
    wide = x.float()
    scale = wide.abs().amax(-1).clamp(min=SMALLEST_PEAK) / LARGEST
    # Rounding of the quotient could exceed the largest number, which has no infinity above it.
    values = (wide / scale[:, None]).clamp(-LARGEST, LARGEST)
    return Fp8Matrix(values.to(DTYPE), scale, x.dtype)


def multiply(x: Fp8Matrix, weight: Fp8Matrix, bias: Tensor | None = None) -> Tensor:
    """Computes x @ weight.T + bias, summed in float32.

    On a GPU that has tensor cores for fp8 the library multiplies e4m3; elsewhere the factors are
    widened first, which gives the same numbers slowly.

    Args:
        x: (M, K).
        weight: (N, K).
        bias: (N,), None = none.

    Returns:
        (M, N) in the dtype that `x` was rounded from.
    """
    if x.values.is_cuda and x.dtype == torch.bfloat16:
        return torch._scaled_mm(
            x.values,
            weight.values.t(),
            scale_a=x.scale[:, None],
            scale_b=weight.scale[None],
            bias=bias,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
    out = x.values.float() @ weight.values.float().t()
    out = out * x.scale[:, None] * weight.scale
    return (out if bias is None else out + bias.float()).to(x.dtype)
