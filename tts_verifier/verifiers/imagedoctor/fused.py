"""Chains of element-wise operations that a GPU runs as one kernel.

Between its matrix products a model moves small tensors many times; on a GPU each move costs a
kernel's launch and a trip through memory. `torch.compile` makes one kernel of each chain, in
a few seconds the first time. A CPU, training, and a machine on which
Triton is absent run the chain as it is written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import silu

TRITON: Final = find_spec("triton") is not None


def fused(*, inner: bool) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Compiles a function of tensors at its first use on a GPU; the first says where it runs.

    Args:
        inner: once for each inner shape and all numbers of rows, for the fastest kernels;
            otherwise once for all shapes.
    """

    def wrap(chain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        compiled: list[Callable[..., Tensor]] = []

        @wraps(chain)
        def run(x: Tensor, *rest: Tensor | int) -> Tensor:
            if not x.is_cuda or torch.is_grad_enabled() or not TRITON:
                return chain(x, *rest)
            if not compiled:
                compiled.append(torch.compile(chain, dynamic=not inner))
            if inner:
                for tensor in (x, *rest):
                    if isinstance(tensor, Tensor):
                        torch._dynamo.maybe_mark_dynamic(tensor, 0)
            return compiled[0](x, *rest)

        return run

    return wrap


@fused(inner=True)
def gated(both: Tensor) -> Tensor:
    """(M, 2 N), gates and values side by side -> (M, N), each value times SiLU of its gate."""
    gate, value = both.chunk(2, dim=-1)
    return silu(gate) * value


@fused(inner=True)
def rotated(heads: Tensor, cos: Tensor, sin: Tensor, turned: int) -> Tensor:
    """Rotates pairs (i, i + size / 2) of the first `turned` heads; the others are copied.

    Args:
        heads: (M, heads, size).
        cos: (M, size), in a dtype to compute in.
        sin: (M, size), negative in its first half.
        turned: how many heads.
    """
    some = heads[:, :turned]
    swapped = some.roll(some.shape[-1] // 2, -1)
    spun = some * cos[:, None] + swapped * sin[:, None]
    return torch.cat([spun.to(heads.dtype), heads[:, turned:]], 1)


@fused(inner=False)
def channel_norm(x: Tensor, scale: Tensor) -> Tensor:
    """Divides (N, C, H, W) by the root mean square over channels, times (C, 1, 1)."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8) * scale
