"""Rounds a model's products to fp8 while it is loaded; the released weights need no calibration.

The products of the language model's layers and of the vision tower's blocks are rounded. The
embedding, the norms, the vision tower's patches and merger, the output matrix and the heatmap
heads keep their dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import torch

from tts_verifier.errors import InputError
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.ops.fp8 import Fp8Linear

LANGUAGE: Final = (
    ("self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")),
    ("mlp", ("gate_proj", "up_proj", "down_proj")),
)
VISION: Final = (("attn", ("qkv", "proj")), ("mlp", ("gate_proj", "up_proj", "down_proj")))
MULTIPLE: Final = 16
"""Tensor cores multiply fp8 matrices whose sizes are multiples of this."""


@torch.no_grad()
def quantise_model(model: ImageDoctorModel) -> None:
    """Replaces linear layers by `Fp8Linear`, one after the other, so memory never holds both.

    Raises:
        InputError: a GPU cannot multiply fp8.
    """
    for device in {parameter.device for parameter in model.parameters()}:
        check_supports_fp8(device)
    for module in cast(Sequence[Any], model.model.layers):
        _quantise(module, LANGUAGE)
    for module in cast(Sequence[Any], model.visual.blocks):
        _quantise(module, VISION)


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


def _quantise(module: Any, places: Sequence[tuple[str, Sequence[str]]]) -> None:
    for parent_name, names in places:
        parent = getattr(module, parent_name)
        for name in names:
            setattr(parent, name, Fp8Linear(getattr(parent, name)))
