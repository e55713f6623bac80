"""Where the parts of a model live: one device, or language layers spread over several.

Only the language model's layers are ever spread; vision, embeddings and heads stay together
on the main device. A hook moves what enters a layer to where its weights are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from tts_verifier.errors import InputError
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel

DeviceMap = str | Mapping[str, str | int | torch.device]
LAYER: Final = "model.layers."


class Placement:
    """The device of every tensor.

    Args:
        main: the device of all that no entry names.
        layers: number of the language model's layers.
        device_map: "auto" = layers in equal runs over all visible GPUs; or names like
            "model.layers.7" to devices; None = all on `main`.

    Raises:
        InputError: the map names anything but a layer, or "auto" finds no GPU.
    """

    def __init__(
        self, main: torch.device, layers: int, device_map: DeviceMap | None = None
    ) -> None:
        self.main = main
        self.layers: dict[int, torch.device] = {}
        if isinstance(device_map, str):
            self.layers = _auto(layers, device_map)
            self.main = self.layers[0]
        elif device_map is not None:
            self.layers = dict(_entry(n, d, layers) for n, d in device_map.items())

    def of(self, name: str) -> torch.device:
        """Returns the device of a tensor of the state dict."""
        if not self.layers or not name.startswith(LAYER):
            return self.main
        number = int(name.removeprefix(LAYER).partition(".")[0])
        return self.layers.get(number, self.main)

    def settle(self, model: ImageDoctorModel) -> ImageDoctorModel:
        """Moves the buffers, and makes inputs follow the layers."""
        if not self.layers:
            return model.to(self.main)
        model.model.rotary_emb.to(self.main)
        for i, layer in enumerate(model.model.layers):
            _follow(layer, self.layers.get(i, self.main))
        _follow(model.model.norm, self.main)
        return model


def _auto(layers: int, device_map: str) -> dict[int, torch.device]:
    count = torch.cuda.device_count()
    if device_map != "auto" or not count:
        raise InputError(
            f"device_map must be 'auto', with at least one GPU ({count} found), or a mapping of "
            f"layers to devices; got {device_map!r}.",
            argument="device_map",
        )
    return {i: torch.device("cuda", i * count // layers) for i in range(layers)}


def _entry(name: str, device: str | int | torch.device, layers: int) -> tuple[int, torch.device]:
    number = name.removeprefix(LAYER)
    if not name.startswith(LAYER) or not number.isdecimal() or int(number) >= layers:
        raise InputError(
            f"device_map places language layers only, {LAYER}0 to {LAYER}{layers - 1}; got "
            f"{name!r}. Use device= for the rest.",
            argument="device_map",
        )
    return int(number), torch.device(device)


def _follow(module: nn.Module, device: torch.device) -> None:
    """Moves tensors among the module's arguments to its device before each call."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        return tuple(map(moved, value)) if isinstance(value, tuple) else value

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return moved(args), {key: moved(value) for key, value in kwargs.items()}

    module.register_forward_pre_hook(hook, with_kwargs=True)
