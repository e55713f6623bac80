"""Measures what attention costs for a shape that a process has not seen before, and afterwards.

    python examples/benchmarks/attention_shapes.py --out shapes.parquet

On a GPU of the Hopper generation, cuDNN (torch's first choice there) beside FlashAttention, in
bfloat16, forwards. The first shape of each kernel includes loading its library.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from verifier_bench import write

KERNELS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
SHAPES = (
    # (batch, tokens, heads, key heads, width, causal): prompts of the released model, its images,
    # prompts of a smaller model.
    (16, 700, 16, 2, 128, True),
    (16, 701, 16, 2, 128, True),
    (15, 690, 16, 2, 128, True),
    (16, 1296, 16, 16, 80, False),
    (15, 1296, 16, 16, 80, False),
    (106, 180, 4, 2, 64, True),
    (97, 180, 4, 2, 64, True),
    (97, 175, 4, 2, 64, True),
)
REPEATS = 20


def measure(kernel: str, shape: tuple[int, int, int, int, int, bool]) -> dict[str, Any]:
    """Returns the milliseconds of the first call with a shape, and of later ones."""
    batch, tokens, heads, key_heads, width, causal = shape
    like = {"device": "cuda", "dtype": torch.bfloat16}
    query = torch.randn(batch, tokens, heads, width, **like).transpose(1, 2)
    keys, values = torch.randn(2, batch, tokens, key_heads, width, **like).transpose(2, 3)

    def attend() -> None:
        scaled_dot_product_attention(
            query, keys, values, is_causal=causal, enable_gqa=heads != key_heads
        )

    def seconds(calls: int) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            attend()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    with sdpa_kernel(KERNELS[kernel]):
        first, later = seconds(1), seconds(REPEATS) / REPEATS
    names = ("batch", "tokens", "heads", "key_heads", "width", "causal")
    times = {"first_ms": 1e3 * first, "later_ms": 1e3 * later}
    return dict(zip(names, shape, strict=True)) | {"kernel": kernel} | times


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a Parquet file")
    options = parser.parse_args()
    rows = [measure(kernel, shape) for shape in SHAPES for kernel in KERNELS]
    for row in rows:
        print(row)
    write(rows, options.out)


if __name__ == "__main__":
    main()
