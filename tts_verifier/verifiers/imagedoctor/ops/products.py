"""Matrix products of a layer with the small operations around them fused in.

For few rows, as in a decode step, a product's cost is reading the weight once, and our Triton
kernels (`decode_kernels`) read faster than the library's. For many rows, as in prefill, the
library's products win. A weight in fp8 takes rows in fp8, so the operation before each product
ends by rounding its result.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor
from torch.nn.functional import linear, rms_norm

from tts_verifier.verifiers.imagedoctor.ops.fp8 import Fp8Matrix, Matrix, multiply, quantise_rows
from tts_verifier.verifiers.imagedoctor.ops.pointwise import silu_gate, use_triton

FEW_ROWS: Final = 64
"""Up to so many rows, reading a weight takes longer than multiplying by it."""


def product(x: Matrix, weight: Matrix, bias: Tensor | None = None) -> Tensor:
    """Computes x @ weight.T + bias: (M, K), (N, K), (N,) -> (M, N).

    Rows that are not in fp8 yet are rounded if the weight is.
    """
    if isinstance(weight, Tensor):
        assert isinstance(x, Tensor)
        return linear(x, weight, bias)
    return multiply(_in_fp8(x), weight, bias)


def norm_rows(states: Tensor, norm: Tensor, eps: float, following: Matrix) -> Matrix:
    """Computes the RMS norm of states (M, H), as the rows that a product with `following` takes."""
    return add_and_norm(states, None, norm, eps, following)[1]


def add_and_norm(
    states: Tensor, added: Tensor | None, norm: Tensor, eps: float, following: Matrix | None
) -> tuple[Tensor, Matrix]:
    """Adds to the residual states, and computes their RMS norm.

    Args:
        states: (M, H); overwritten where a kernel runs.
        added: (M, H), None = nothing.
        norm: (H,), the norm's weight.
        eps: added to the mean square.
        following: the weight that the norm will be multiplied by; None = none.

    Returns:
        The states, and their norm as the rows that a product with `following` takes.
    """
    in_fp8 = isinstance(following, Fp8Matrix)
    if use_triton(states) and (in_fp8 or added is not None):
        from tts_verifier.verifiers.imagedoctor.ops import row_kernels

        rows, scales = row_kernels.triton_norm_rows(states, added, norm, eps, fp8=in_fp8)
        return states, Fp8Matrix(rows, scales, states.dtype) if in_fp8 else rows
    states = states if added is None else states + added
    # Under autocast the states are narrower than the norm; torch fuses equal types only.
    normed = rms_norm(states, norm.shape, norm.to(states.dtype), eps)
    return states, quantise_rows(normed) if in_fp8 else normed


def gate_rows(both: Tensor, following: Matrix) -> Matrix:
    """Computes the SiLU gate of (M, 2 N), as the rows that a product with `following` takes."""
    if isinstance(following, Tensor):
        return silu_gate(both)
    if not use_triton(both):
        return quantise_rows(silu_gate(both))
    from tts_verifier.verifiers.imagedoctor.ops import row_kernels

    return Fp8Matrix(*row_kernels.triton_gate_rows(both), both.dtype)


def gated_product(x: Matrix, weight: Matrix, following: Matrix) -> Matrix:
    """Multiplies by gate and up weights and applies the SiLU gate.

    Args:
        x: (M, K).
        weight: (2 N, K), the gate's rows and then the up projection's.
        following: the weight that the result will be multiplied by.

    Returns:
        (M, N), as the rows that a product with `following` takes.
    """
    if not _in_decode_kernels(x, weight):
        return gate_rows(product(x, weight), following)
    from tts_verifier.verifiers.imagedoctor.ops import decode_kernels

    gates = decode_kernels.triton_gated_product(x, weight)
    return gates if isinstance(following, Tensor) else quantise_rows(gates)


def add_product_and_norm(
    states: Tensor,
    x: Matrix,
    weight: Matrix,
    norm: Tensor,
    eps: float,
    following: Matrix | None = None,
) -> Matrix:
    """Adds a product to the residual states, in place, and returns their RMS norm.

    Args:
        states: (M, H), overwritten.
        x: (M, K).
        weight: (H, K).
        norm: (H,), the norm's weight.
        eps: added to the mean square.
        following: the weight that the result will be multiplied by; None = none, or any other.

    Returns:
        (M, H), as the rows that a product with `following` takes.
    """
    in_fp8 = isinstance(following, Fp8Matrix)
    if isinstance(weight, Fp8Matrix):
        x = _in_fp8(x)
    if _in_decode_kernels(x, weight):
        from tts_verifier.verifiers.imagedoctor.ops import decode_kernels

        return decode_kernels.triton_add_product_and_norm(
            states, x, weight, norm, eps, in_fp8=in_fp8
        )
    if isinstance(weight, Tensor) and isinstance(x, Tensor):
        states.addmm_(x, weight.t())
    elif use_triton(states):
        return add_and_norm(states, product(x, weight), norm, eps, following)[1]
    else:
        states += product(x, weight)
    return add_and_norm(states, None, norm, eps, following)[1]


def _in_fp8(x: Matrix) -> Fp8Matrix:
    return x if isinstance(x, Fp8Matrix) else quantise_rows(x)


def _in_decode_kernels(x: Matrix, weight: Matrix) -> bool:
    """Says whether a product runs in our kernels: few rows of 16 bits or 8, in sizes they tile."""
    stored = x.values if isinstance(x, Fp8Matrix) else x
    if not use_triton(stored) or len(stored) > FEW_ROWS or x.dtype.itemsize != 2:
        return False
    from tts_verifier.verifiers.imagedoctor.ops.decode_kernels import SIZE_MULTIPLE

    shape = weight.shape if isinstance(weight, Tensor) else weight.values.shape
    return all(size % SIZE_MULTIPLE == 0 for size in shape)
