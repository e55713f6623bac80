"""Matrix products of a layer with the small operations around them fused in.

For few rows, as in a decode step, a product's cost is reading the weight once, and our Triton
kernels (`decode_kernels`) read faster than the library's. For many rows, as in prefill, the
library's products win.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor
from torch.nn.functional import linear, rms_norm

from tts_verifier.verifiers.imagedoctor.ops.pointwise import silu_gate, use_triton

FEW_ROWS: Final = 64
"""Up to so many rows, reading a weight takes longer than multiplying by it."""


def gated_product(x: Tensor, weight: Tensor) -> Tensor:
    """Multiplies by gate and up weights and applies the SiLU gate.

    Args:
        x: (M, K).
        weight: (2 N, K), the gate's rows and then the up projection's.

    Returns:
        (M, N).
    """
    if _in_decode_kernels(x, weight):
        from tts_verifier.verifiers.imagedoctor.ops import decode_kernels

        return decode_kernels.triton_gated_product(x, weight)
    return silu_gate(linear(x, weight))


def add_product_and_norm(
    states: Tensor, x: Tensor, weight: Tensor, norm: Tensor, eps: float
) -> Tensor:
    """Adds a product to the residual states, in place, and returns their RMS norm.

    Args:
        states: (M, H), overwritten.
        x: (M, K).
        weight: (H, K).
        norm: (H,), the norm's weight.
        eps: added to the mean square.

    Returns:
        (M, H).
    """
    if _in_decode_kernels(x, weight):
        from tts_verifier.verifiers.imagedoctor.ops import decode_kernels

        return decode_kernels.triton_add_product_and_norm(states, x, weight, norm, eps)
    states.addmm_(x, weight.t())
    return rms_norm(states, norm.shape, norm, eps)


def _in_decode_kernels(x: Tensor, weight: Tensor) -> bool:
    """Says whether a product runs in our kernels: few rows of 16 bits, and sizes they tile."""
    if not use_triton(x) or len(x) > FEW_ROWS or x.dtype.itemsize != 2:
        return False
    from tts_verifier.verifiers.imagedoctor.ops.decode_kernels import SIZE_MULTIPLE

    return all(size % SIZE_MULTIPLE == 0 for size in weight.shape)
