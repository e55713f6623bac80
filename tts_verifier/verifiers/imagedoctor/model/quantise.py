"""Rounds a loaded model's products to fp8; the released weights need no calibration.

The products of the language model's layers and of the vision tower's blocks are rounded. The
embedding, the norms, the vision tower's patches and merger, the output matrix and the heatmap
heads keep their dtype. Keys are balanced first, because the KV cache of such a model rounds them
to 8-bit integers, with one scale for all channels of a head, and the biases of Qwen2.5 make a few
channels much larger than the others. QServe (Lin et al. 2024) balances them by calibration data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from tts_verifier.errors import InputError
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.model.plain import is_product
from tts_verifier.verifiers.imagedoctor.ops.e4m3 import SMALLEST_PEAK
from tts_verifier.verifiers.imagedoctor.ops.fp8 import Fp8Linear


@torch.no_grad()
def quantise_model(model: ImageDoctorModel) -> None:
    """Replaces linear layers by `Fp8Linear`, one after the other, so memory never holds both.

    Layers that are in fp8 already stay.

    Raises:
        InputError: a GPU cannot multiply fp8.
    """
    for device in {parameter.device for parameter in model.parameters()}:
        check_supports_fp8(device)
    for layer in cast(Sequence[Any], model.model.layers):
        balance_keys(layer, int(model.config.text["num_key_value_heads"]))
    # Their names only, because a list of the layers would keep all of them.
    names = [
        name
        for name, module in model.named_modules()
        if is_product(name) and not isinstance(module, Fp8Linear)
    ]
    for name in names:
        where, _, part = name.rpartition(".")
        parent = model.get_submodule(where)
        setattr(parent, part, Fp8Linear(getattr(parent, part)))


def is_in_fp8(model: ImageDoctorModel) -> bool:
    """Says whether the language model's products are in fp8."""
    layer = cast(Sequence[Any], model.model.layers)[0]
    return isinstance(layer.mlp.down_proj, Fp8Linear)


@torch.no_grad()
def balance_keys(layer: Any, kv_heads: int) -> None:
    """Makes all channels of a layer's keys about as large, and its queries the other way round.

    Attention weights stay the same: both channels that RoPE rotates together have one factor, and
    factors are powers of two. How large a channel is follows from its weights and bias, for inputs
    of mean square 1 without correlations.

    Args:
        layer: of the language model; nothing happens if it is in fp8 already.
        kv_heads: of its attention.
    """
    keys, queries = layer.self_attn.k_proj, layer.self_attn.q_proj
    if isinstance(keys, Fp8Linear):
        return
    gains = layer.input_layernorm.weight.float()
    power = (keys.weight.float() * gains).square().sum(1) + keys.bias.float().square()
    size = power.clamp(min=SMALLEST_PEAK).view(kv_heads, 2, -1).mean(1, keepdim=True).log2() / 2
    factor = torch.exp2((size - size.mean(2, keepdim=True)).round()).expand(-1, 2, -1)
    for linear, scale in ((keys, 1 / factor.flatten(1)), (queries, factor.flatten(1))):
        rows: Tensor = scale.repeat_interleave(len(linear.weight) // scale.numel(), 0).flatten()
        linear.weight.mul_(rows[:, None].to(linear.weight.dtype))
        linear.bias.mul_(rows.to(linear.bias.dtype))


def check_supports_fp8(device: torch.device) -> None:
    """Raises InputError if a device is a GPU without tensor cores for fp8."""
    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        name = torch.cuda.get_device_name(device)
        raise InputError(
            f"precision='fp8' needs a GPU of compute capability 8.9 or more (Ada, Hopper); {name} "
            f"has {capability[0]}.{capability[1]}. Leave precision out.",
            argument="precision",
        )
