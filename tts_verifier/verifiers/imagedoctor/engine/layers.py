"""The language model's layers as the decoding engine runs them: few, large kernels.

The same weights as `ImageDoctorModel.language`, equal up to rounding (there is a test), but
queries, keys and values come from one product, gate and up from another, residuals are added
by the products that make them, and what attends to what is the caller's. Source: Qwen2.5-VL
technical report (Bai et al. 2025), section 2.1; the layer is Qwen2.5's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm

from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.ops.fused_weights import fuse_rows
from tts_verifier.verifiers.imagedoctor.ops.products import add_product_and_norm, gated_product

Turn = tuple[Tensor, Tensor]
"""Cosine and signed sine of M-RoPE's angles, (N * T, size) each."""
Attend = Callable[[int, Tensor, Turn], Tensor]
"""(layer, joined queries, keys and values (N, T, width), turn) -> attended (N, T, heads * size).

Queries and keys are not rotated yet: that is done by what reads them anyhow."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One layer's weights, joined where they share an input; `after`: the norm that follows."""

    norm: Tensor
    qkv: Tensor
    bias: Tensor
    out: Tensor
    second_norm: Tensor
    gate_up: Tensor
    down: Tensor
    after: Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads and sizes of the attention; `turned` of the joined heads are rotated."""

    heads: int
    kv_heads: int
    size: int
    eps: float
    section: tuple[int, ...]

    @property
    def turned(self) -> int:
        """Query and key heads."""
        return self.heads + self.kv_heads


def shape_of(model: ImageDoctorModel) -> Shape:
    """Reads the shape of a model's attention."""
    text = model.config.text
    heads = int(text["num_attention_heads"])
    return Shape(
        heads,
        int(text["num_key_value_heads"]),
        int(text["hidden_size"]) // heads,
        float(text["rms_norm_eps"]),
        tuple(text["rope_parameters"]["mrope_section"]),
    )


def layers_of(model: ImageDoctorModel) -> list[Layer]:
    """Joins the weights of every layer; the parameters become views of the joined ones."""
    layers = list(cast(Sequence[Any], model.model.layers))
    norms = [*(layer.input_layernorm.weight for layer in layers[1:]), model.model.norm.weight]
    with torch.inference_mode(False), torch.no_grad():
        return [_layer(layer, norm) for layer, norm in zip(layers, norms, strict=True)]


def _layer(layer: Any, after: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    three = (attention.q_proj, attention.k_proj, attention.v_proj)
    return Layer(
        norm=layer.input_layernorm.weight.detach(),
        qkv=fuse_rows([part.weight for part in three]),
        bias=fuse_rows([part.bias for part in three]),
        out=attention.o_proj.weight.detach(),
        second_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=fuse_rows([mlp.gate_proj.weight, mlp.up_proj.weight]),
        down=mlp.down_proj.weight.detach(),
        after=after.detach().to(mlp.down_proj.weight.device),
    )


def turns(model: ImageDoctorModel, positions: Tensor, shape: Shape) -> Turn:
    """Returns what rotates queries and keys.

    Args:
        model: gives the frequencies.
        positions: (3, B, T) of time, row and column.
        shape: says which axis turns which frequency.
    """
    rates = cast(Tensor, model.model.rotary_emb.inv_freq)
    parts = rates.split(shape.section)
    angles = [p[..., None].float() * part for p, part in zip(positions, parts, strict=True)]
    angle = torch.cat(angles, -1).flatten(0, 1)
    cos, sin = angle.cos(), angle.sin()
    dtype = model.lm_head.weight.dtype
    both = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    return both[0].to(dtype), both[1].to(dtype)


def run(layers: Sequence[Layer], x: Tensor, turn: Turn, shape: Shape, *, attend: Attend) -> Tensor:
    """Runs all layers and the final norm on states (N, T, H), which are overwritten."""
    states = x.flatten(0, 1)
    normed = rms_norm(states, layers[0].norm.shape, layers[0].norm.to(x.device), shape.eps)
    for i, layer in enumerate(layers):
        if layer.norm.device != states.device:
            there = layer.norm.device
            states, normed = states.to(there), normed.to(there)
            turn = turn[0].to(there), turn[1].to(there)
        qkv = linear(normed, layer.qkv, layer.bias).unflatten(0, x.shape[:2])
        attended = attend(i, qkv, turn).flatten(0, 1)
        normed = add_product_and_norm(states, attended, layer.out, layer.second_norm, shape.eps)
        gates = gated_product(normed, layer.gate_up)
        normed = add_product_and_norm(states, gates, layer.down, layer.after, shape.eps)
    return normed.view(x.shape)
