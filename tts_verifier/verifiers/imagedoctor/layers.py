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

from tts_verifier.verifiers.imagedoctor.fused import gated, rotated
from tts_verifier.verifiers.imagedoctor.joining import joined
from tts_verifier.verifiers.imagedoctor.model import ImageDoctorModel

Attend = Callable[[int, Tensor], Tensor]
"""(layer, joined queries, keys and values (N, T, width)) -> attended (N, T, heads * size)."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One layer's weights, joined where they share an input."""

    norm: Tensor
    qkv: Tensor
    bias: Tensor
    out: Tensor
    second_norm: Tensor
    gate_up: Tensor
    down: Tensor


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
    with torch.inference_mode(False), torch.no_grad():
        return [_layer(layer) for layer in cast(Sequence[Any], model.model.layers)]


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    three = (attention.q_proj, attention.k_proj, attention.v_proj)
    return Layer(
        norm=layer.input_layernorm.weight.detach(),
        qkv=joined([part.weight for part in three]),
        bias=joined([part.bias for part in three]),
        out=attention.o_proj.weight.detach(),
        second_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=joined([mlp.gate_proj.weight, mlp.up_proj.weight]),
        down=mlp.down_proj.weight.detach(),
    )


def turns(model: ImageDoctorModel, positions: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Returns cosine and signed sine of M-RoPE's angles, (B * T, size) each.

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


def run(
    layers: Sequence[Layer],
    x: Tensor,
    turn: tuple[Tensor, Tensor],
    shape: Shape,
    *,
    attend: Attend,
) -> Tensor:
    """Runs all layers on states (N, T, H), which are overwritten; the final norm is not run."""
    for i, layer in enumerate(layers):
        if layer.norm.device != x.device:
            x, turn = x.to(layer.norm.device), _moved(turn, layer.norm.device)
        flat = x.flatten(0, 1)
        normed = rms_norm(x, layer.norm.shape, layer.norm, shape.eps)
        heads = linear(normed, layer.qkv, layer.bias).view(len(flat), -1, shape.size)
        qkv = rotated(heads, *turn, shape.turned).view(*x.shape[:2], -1)
        flat.addmm_(attend(i, qkv).flatten(0, 1), layer.out.t())
        normed = rms_norm(x, layer.second_norm.shape, layer.second_norm, shape.eps)
        flat.addmm_(gated(linear(normed, layer.gate_up).flatten(0, 1)), layer.down.t())
    return x


def _moved(turn: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    return turn[0].to(device), turn[1].to(device)
