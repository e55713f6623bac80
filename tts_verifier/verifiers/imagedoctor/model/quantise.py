"""Rounds a loaded model's products to fp8; the released weights need no calibration.

The products of the language model's layers and of the vision tower's blocks are rounded. The
embedding, the norms, the vision tower's patches and merger, the output matrix and the heatmap
heads keep their dtype.
"""

from __future__ import annotations

import torch

from tts_verifier.errors import InputError
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.model.plain import is_product
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
