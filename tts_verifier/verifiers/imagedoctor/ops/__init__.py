"""Operations that the model and the engine share: fused weights, Triton kernels, host transfers.

Files of kernels need Triton; import them on a GPU only.
"""

from __future__ import annotations

from tts_verifier.verifiers.imagedoctor.ops.fused_weights import fuse_rows
from tts_verifier.verifiers.imagedoctor.ops.pointwise import rotate_heads, silu_gate, use_triton
from tts_verifier.verifiers.imagedoctor.ops.products import add_product_and_norm, gated_product
from tts_verifier.verifiers.imagedoctor.ops.transfer import to_device

__all__ = [
    "add_product_and_norm",
    "fuse_rows",
    "gated_product",
    "rotate_heads",
    "silu_gate",
    "to_device",
    "use_triton",
]
