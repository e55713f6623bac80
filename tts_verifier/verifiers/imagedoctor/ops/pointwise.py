"""Chains of element-wise operations; on a GPU each chain is one Triton kernel.

`pointwise_kernels` holds the kernels. A CPU, training, and a machine without Triton run the
plain torch chain that stands here.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import silu

from tts_verifier.errors import RunWarning

TRITON: Final = find_spec("triton") is not None


def use_triton(x: Tensor) -> bool:
    """Says whether operations on `x` run in our Triton kernels.

    They do on the current GPU in inference. The kernels have no backward pass, and Triton
    launches on the current device only.
    """
    if not x.is_cuda or not TRITON or torch.is_grad_enabled():
        return False
    return x.device.index == torch.cuda.current_device() and triton_runs_on(x.device)


@cache
def triton_runs_on(device: torch.device) -> bool:
    """Says whether our kernels run on a GPU, by running one; warns if Triton fails.

    The answer is cached for the process. Triton needs compute capability 8.0 for bfloat16, and
    a C compiler on the machine, so a successful import is not enough.
    """
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    from tts_verifier.verifiers.imagedoctor.ops import pointwise_kernels

    try:
        both = torch.zeros(1, 2048, dtype=torch.bfloat16, device=device)
        pointwise_kernels.triton_silu_gate(both)
    except Exception as error:  # torch replaces the kernels, whatever Triton lacks
        warnings.warn(
            f"Triton's kernels do not run on {device} ({type(error).__name__}: {error}); "
            "verification is slower without them. Triton needs a C compiler: install one, such "
            "as gcc.",
            RunWarning,
            stacklevel=2,
        )
        return False
    return True


def silu_gate(both: Tensor) -> Tensor:
    """Multiplies each value by the SiLU of its gate.

    Args:
        both: (M, 2 N), the N gates and then the N values of each row.

    Returns:
        (M, N).
    """
    if use_triton(both):
        from tts_verifier.verifiers.imagedoctor.ops import pointwise_kernels

        return pointwise_kernels.triton_silu_gate(both)
    gate, value = both.chunk(2, dim=-1)
    return silu(gate) * value


def rotate_heads(heads: Tensor, cos: Tensor, sin: Tensor, rotated: int) -> Tensor:
    """Applies rotary position embedding in place: rotates pairs (i, i + size / 2).

    Args:
        heads: (M, heads, size), overwritten.
        cos: (M, size), in the dtype to compute in.
        sin: (M, size), negated in its first half.
        rotated: how many of the heads to rotate, from the first; the others stay.

    Returns:
        (M, heads, size), the same tensor.
    """
    if use_triton(heads):
        from tts_verifier.verifiers.imagedoctor.ops import pointwise_kernels

        return pointwise_kernels.triton_rotate_heads(heads, cos, sin, rotated)
    first = heads[:, :rotated]
    # The heads themselves if they have this dtype, else a copy.
    turned = first.to(cos.dtype)
    # Puts each channel's partner in its place; the partner's sign is part of the sine.
    partners = turned.roll(turned.shape[-1] // 2, -1).mul_(sin[:, None])
    turned.mul_(cos[:, None]).add_(partners)
    if turned.dtype != heads.dtype:
        first.copy_(turned)
    return heads
