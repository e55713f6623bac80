"""Replaces the weights of a model while an engine runs it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tts_verifier.errors import CheckpointError
from tts_verifier.verifiers.imagedoctor.checkpoint.weights import (
    EMBEDDING,
    OUTPUT_MATRIX,
    list_names,
    official_name,
)
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.ops.e4m3 import DTYPE
from tts_verifier.verifiers.imagedoctor.ops.fp8 import Fp8Linear, quantise_rows


@torch.no_grad()
def copy_weights(
    model: ImageDoctorModel, state: Mapping[str, Tensor], *, partial: bool = False
) -> None:
    """Copies new values into a model's weights, where they are in memory.

    Fused matrices share that memory, and captured steps read it, so engines need neither a new
    capture nor memory for a second copy: their next step uses the new weights. Call it in the
    thread that takes the engine's replies, between two of them; sequences that are running keep
    what they have read with the old weights. Where layers are on several devices, the new weights
    count from the next call of `Engine.replies` on.

    Args:
        model: the engine's model; its dtypes and devices stay, and what is in fp8 is rounded anew.
        state: name -> values, under the names of either generation (see `checkpoint.weights`),
            of any floating dtype, on any device.
        partial: whether weights may be missing, which then keep their values.

    Raises:
        CheckpointError: names, shapes or dtypes do not fit; nothing was copied.
    """
    weights = model.state_dict()
    values: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if (official := official_name(name)) in values:
            raise CheckpointError(f"The new weights hold {official} twice. Keep one of them.")
        values[official] = tensor
    rounded = _layers_to_round(model, values)
    scales = {name.removesuffix("weight") + "scale" for name in rounded}
    _check(model, {n: t for n, t in weights.items() if n not in scales}, values, partial=partial)
    for name, tensor in values.items():
        if (layer := rounded.get(name)) is None:
            weights[name].copy_(tensor)
            continue
        quantised = quantise_rows(tensor.to(layer.weight.device, layer.dtype))
        layer.weight.copy_(quantised.values)
        layer.scale.copy_(quantised.scale)


def _layers_to_round(model: ImageDoctorModel, values: Mapping[str, Tensor]) -> dict[str, Fp8Linear]:
    """Returns the layers in fp8, by their weight's name, whose new values are not in fp8 yet."""
    named = ((f"{name}.weight", layer) for name, layer in model.named_modules())
    return {
        name: layer
        for name, layer in named
        if isinstance(layer, Fp8Linear) and name in values and values[name].dtype != DTYPE
    }


def _check(
    model: ImageDoctorModel,
    weights: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    *,
    partial: bool,
) -> None:
    both = {OUTPUT_MATRIX, EMBEDDING}
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    # Of two names of one tensor either will do.
    missing = set(weights) - set(values) - (both if tied and both & set(values) else set())
    known = sorted(set(weights) & set(values))
    faults = {
        "are missing": [] if partial else sorted(missing),
        "are not in the model": sorted(set(values) - set(weights)),
        "have another shape": [
            f"{name} {tuple(values[name].shape)} instead of {tuple(weights[name].shape)}"
            for name in known
            if values[name].shape != weights[name].shape
        ],
        "hold no usable numbers": [
            f"{name} {values[name].dtype} on {values[name].device}"
            for name in known
            if not _is_usable(values[name], weights[name])
        ],
    }
    if parts := [list_names(fault, names) for fault, names in faults.items() if names]:
        raise CheckpointError(
            f"New weights must have the names and shapes of the model's; nothing was copied. "
            f"{' '.join(parts)} Give a whole state dict with its adapters merged, or partial=True "
            "for some of the weights."
        )
    if tied and both <= set(values) and not torch.equal(values[OUTPUT_MATRIX], values[EMBEDDING]):
        raise CheckpointError(
            f"The model's {OUTPUT_MATRIX} is {EMBEDDING} itself, but the new weights give them "
            "different values. Leave one of them out."
        )


def _is_usable(values: Tensor, weight: Tensor) -> bool:
    # Numbers in 8 bits mean something only with their scale, which a plain weight lacks.
    wide = values.is_floating_point() and (values.dtype.itemsize > 1 or weight.dtype == DTYPE)
    return wide and not values.is_meta
