"""The language model's layers as the engine runs them: few, large kernels.

The weights are those of `ImageDoctorModel`, and the results are equal up to rounding (there is a
test). Queries, keys and values come from one product, gate and up from another, each residual is
added by the product that makes it, and the caller passes the attention function in. Source:
Qwen2.5-VL technical report (Bai et al. 2025), section 2.1; the layer is Qwen2.5's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.model.vision import Block, blocks_of
from tts_verifier.verifiers.imagedoctor.ops.fp8 import Matrix, fuse_linears
from tts_verifier.verifiers.imagedoctor.ops.fused_weights import fuse_rows
from tts_verifier.verifiers.imagedoctor.ops.products import (
    add_product_and_norm,
    gated_product,
    norm_rows,
    product,
)

Rope = tuple[Tensor, Tensor]
"""Cosine and signed sine of M-RoPE's angles, (N * T, head size) each."""
Attend = Callable[[int, Tensor, Rope], Tensor]
"""(layer, fused queries, keys and values (N, T, width), rope) -> (N, T, heads * head size).

Queries and keys arrive unrotated: the attention kernel applies RoPE, because it loads them in
any case."""


@dataclass(frozen=True, slots=True, eq=False)
class FusedLayer:
    """One layer's weights, those with a common input in one matrix."""

    norm: Tensor
    """(H,), the norm before attention."""
    qkv: Matrix
    """(queries + keys + values, H)."""
    bias: Tensor
    """(queries + keys + values,)."""
    out: Matrix
    """(H, heads * head size), the attention's output projection."""
    second_norm: Tensor
    """(H,), the norm before the MLP."""
    gate_up: Matrix
    """(2 * inner, H), the gate's rows and then those of the up projection."""
    down: Matrix
    """(H, inner)."""
    next_norm: Tensor
    """(H,), the norm after this layer: the next layer's first, or the final one."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Heads and sizes of the attention."""

    heads: int
    """Query heads."""
    kv_heads: int
    """Key heads, and as many value heads; each serves heads / kv_heads query heads."""
    size: int
    """Channels of a head."""
    eps: float
    """Added to the mean square in every RMS norm."""
    section: tuple[int, ...]
    """How many of M-RoPE's frequencies rotate with time, row and column."""

    @property
    def rotated(self) -> int:
        """How many of the fused heads RoPE rotates: queries and keys."""
        return self.heads + self.kv_heads


@dataclass(frozen=True, slots=True, eq=False)
class FusedModel:
    """A model with its fused weights, as prefill and decode steps use them."""

    model: ImageDoctorModel
    """The model whose parameters the fused weights share memory with."""
    layers: list[FusedLayer]
    """The language model's layers."""
    vision_blocks: list[Block]
    """The vision tower's blocks."""
    shape: AttentionShape
    """The language model's attention."""


def fuse_model(model: ImageDoctorModel) -> FusedModel:
    """Fuses a model's weights.

    The model's parameters become views of the fused matrices (see `ops.fused_weights`): their
    `data` is re-pointed, their values stay.
    """
    blocks = blocks_of(model.visual, fuse=True)
    return FusedModel(model, _fuse_layers(model), blocks, _attention_shape(model))


def _attention_shape(model: ImageDoctorModel) -> AttentionShape:
    text = model.config.text
    heads = int(text["num_attention_heads"])
    return AttentionShape(
        heads,
        int(text["num_key_value_heads"]),
        int(text["hidden_size"]) // heads,
        float(text["rms_norm_eps"]),
        tuple(text["rope_parameters"]["mrope_section"]),
    )


def _fuse_layers(model: ImageDoctorModel) -> list[FusedLayer]:
    layers = list(cast(Sequence[Any], model.model.layers))
    # The product that ends a layer also computes the norm that begins the next one.
    norms = [*(layer.input_layernorm.weight for layer in layers[1:]), model.model.norm.weight]
    # Parameters that were made in inference mode could never be trained afterwards.
    with torch.inference_mode(False), torch.no_grad():
        return [_fuse_layer(layer, norm) for layer, norm in zip(layers, norms, strict=True)]


def _fuse_layer(layer: Any, next_norm: Any) -> FusedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    return FusedLayer(
        norm=layer.input_layernorm.weight.detach(),
        qkv=fuse_linears(projections),
        bias=fuse_rows([projection.bias for projection in projections]),
        out=fuse_linears([attention.o_proj]),
        second_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=fuse_linears([mlp.gate_proj, mlp.up_proj]),
        down=fuse_linears([mlp.down_proj]),
        # A copy if the next layer is on another device; fused anew with each call of the engine.
        next_norm=next_norm.detach().to(mlp.down_proj.weight.device),
    )


def mrope(fused: FusedModel, positions: Tensor) -> Rope:
    """Computes what rotates queries and keys.

    Args:
        fused: gives the frequencies, and which axis rotates which of them.
        positions: (3, B, T) of time, row and column.

    Returns:
        Cosine and signed sine, (B * T, head size) each, in the model's dtype.
    """
    frequencies = cast(Tensor, fused.model.model.rotary_emb.inv_freq)
    parts = frequencies.split(fused.shape.section)
    # Angles in float32: bfloat16 has 8 bits, too few for positions above 256.
    angles = [p[..., None].float() * part for p, part in zip(positions, parts, strict=True)]
    angle = torch.cat(angles, -1).flatten(0, 1)
    cos, sin = angle.cos(), angle.sin()
    dtype = fused.model.lm_head.weight.dtype
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def run_layers(
    fused: FusedModel, x: Tensor, rope: Rope, *, attend: Attend, rows: Tensor | None = None
) -> Tensor:
    """Runs all layers and the final norm.

    Args:
        fused: the weights; layers may be on several devices.
        x: (N, T, H), embedded tokens; overwritten.
        rope: from `mrope`.
        attend: the attention, which also keeps keys and values.
        rows: (R,), the places in (N * T) whose states are needed; None = all.

    Returns:
        (N, T, H), or (R, H) with `rows`, on the last layer's device.
    """
    layers, eps = fused.layers, fused.shape.eps
    # A view of `x`: the residual is updated in place from here on.
    states = x.flatten(0, 1)
    normed = norm_rows(states, layers[0].norm.to(x.device), eps, layers[0].qkv)
    for i, layer in enumerate(layers):
        last = i == len(layers) - 1
        if layer.norm.device != states.device:
            device = layer.norm.device
            states, normed = states.to(device), normed.to(device)
            rope = rope[0].to(device), rope[1].to(device)
        qkv = product(normed, layer.qkv, layer.bias).unflatten(0, x.shape[:2])
        attended = attend(i, qkv, rope).flatten(0, 1)
        # After the last attention no token needs another one's state any more.
        if rows is not None and last:
            rows = rows.to(states.device)
            states, attended = states[rows], attended[rows]
        normed = add_product_and_norm(
            states, attended, layer.out, layer.second_norm, eps, layer.gate_up
        )
        gates = gated_product(normed, layer.gate_up, layer.down)
        following = None if last else layers[i + 1].qkv
        normed = add_product_and_norm(states, gates, layer.down, layer.next_norm, eps, following)
    assert isinstance(normed, Tensor)  # nothing follows the last layer, so it is not in fp8
    return normed.view(x.shape) if rows is None else normed
