"""Chains of element-wise operations, one kernel each on a GPU with Triton (see `kernels`).

A CPU, training, and a machine on which Triton is absent run the chain as it is written.
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


def in_kernels(x: Tensor) -> bool:
    """Says whether what is done to `x` runs in kernels of our own, on the current GPU."""
    if not x.is_cuda or not TRITON or torch.is_grad_enabled():
        return False
    return x.device.index == torch.cuda.current_device() and _run_on(x.device)


@cache
def _run_on(device: torch.device) -> bool:
    """Says whether kernels run on a GPU; tried once, as Triton needs a C compiler beside it."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    from tts_verifier.verifiers.imagedoctor.ops import pointwise_kernels

    try:
        pointwise_kernels.gated(torch.zeros(1, 2048, dtype=torch.bfloat16, device=device))
    except Exception as error:  # whatever Triton lacks, torch can do without
        warnings.warn(
            f"Triton's kernels do not run on {device} ({type(error).__name__}: {error}); judging "
            "is slower without. Triton needs a C compiler: install one, such as gcc.",
            RunWarning,
            stacklevel=2,
        )
        return False
    return True


def gated(both: Tensor) -> Tensor:
    """(M, 2 N), gates and values side by side -> (M, N), each value times SiLU of its gate."""
    if in_kernels(both):
        from tts_verifier.verifiers.imagedoctor.ops import pointwise_kernels

        return pointwise_kernels.gated(both)
    gate, value = both.chunk(2, dim=-1)
    return silu(gate) * value


def rotated(heads: Tensor, cos: Tensor, sin: Tensor, turned: int) -> Tensor:
    """Rotates pairs (i, i + size / 2) of the first `turned` heads, perhaps in place.

    Args:
        heads: (M, heads, size).
        cos: (M, size), in a dtype to compute in.
        sin: (M, size), negative in its first half.
        turned: how many heads; the others stay.
    """
    if in_kernels(heads):
        from tts_verifier.verifiers.imagedoctor.ops import pointwise_kernels

        return pointwise_kernels.rotated(heads, cos, sin, turned)
    some = heads[:, :turned]
    swapped = some.roll(some.shape[-1] // 2, -1)
    spun = some * cos[:, None] + swapped * sin[:, None]
    return torch.cat([spun.to(heads.dtype), heads[:, turned:]], 1)
