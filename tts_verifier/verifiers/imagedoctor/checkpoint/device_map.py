"""Decides on which device each part of the model lives.

Either the whole model is on one device, or the language model's layers are spread over several.
The vision tower, the embeddings and the heatmap head always stay together on the main device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from tts_verifier.errors import InputError
from tts_verifier.loading.devices import check_device
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.model.plain import OWN_HOOK

DeviceMap = str | Mapping[str, str | int | torch.device]
"""See `LayerDevices`."""
LAYER_PREFIX: Final = "model.layers."


class LayerDevices:
    """The device of every tensor of a model.

    Args:
        main: the device of all that the device map does not name; "auto" overrides it.
        layers: number of layers of the language model.
        device_map: "auto" spreads the layers in equal runs over all visible GPUs. A mapping
            takes names like "model.layers.7" to devices. None keeps everything on `main`.

    Raises:
        InputError: the map names something other than a layer, or "auto" finds no GPU.
    """

    def __init__(
        self, main: torch.device, layers: int, device_map: DeviceMap | None = None
    ) -> None:
        self.main = main
        self.layers: dict[int, torch.device] = {}
        if isinstance(device_map, str):
            # Layer 0 reads the embeddings, so all that is not a layer is placed with it.
            self.layers = _spread_evenly(layers, device_map)
            self.main = self.layers[0]
        elif device_map is not None:
            self.layers = dict(_parse_entry(n, d, layers) for n, d in device_map.items())

    def device_of(self, name: str) -> torch.device:
        """Returns the device of a tensor, by its name in the state dict."""
        if not self.layers or not name.startswith(LAYER_PREFIX):
            return self.main
        number = int(name.removeprefix(LAYER_PREFIX).partition(".")[0])
        return self.layers.get(number, self.main)

    def connect(self, model: ImageDoctorModel) -> ImageDoctorModel:
        """Moves the buffers, and makes each layer move its inputs to its device.

        The parameters must be on their devices already. Returns the same model.
        """
        if not self.layers:
            return model.to(self.main)
        # The state dict was read to its devices; the rotary frequencies are not part of it.
        model.model.rotary_emb.to(self.main)
        for i, layer in enumerate(model.model.layers):
            _move_inputs_to(layer, self.layers.get(i, self.main))
        _move_inputs_to(model.model.norm, self.main)
        return model


def _spread_evenly(layers: int, device_map: str) -> dict[int, torch.device]:
    count = torch.cuda.device_count()
    if device_map != "auto" or not count:
        raise InputError(
            f"device_map must be 'auto', with at least one GPU ({count} found), or a mapping of "
            f"layers to devices; got {device_map!r}.",
            argument="device_map",
        )
    return {i: torch.device("cuda", i * count // layers) for i in range(layers)}


def _parse_entry(
    name: str, device: str | int | torch.device, layers: int
) -> tuple[int, torch.device]:
    number = name.removeprefix(LAYER_PREFIX)
    if not name.startswith(LAYER_PREFIX) or not number.isdecimal() or int(number) >= layers:
        raise InputError(
            f"device_map places language layers only, {LAYER_PREFIX}0 to "
            f"{LAYER_PREFIX}{layers - 1}; got {name!r}. Use device= for the rest.",
            argument="device_map",
        )
    # "meta" holds shapes without values, which is enough to try a map out.
    if device == "meta":
        return int(number), torch.device("meta")
    return int(number), check_device(device, argument="device_map") or torch.device("cpu")


def _move_inputs_to(module: nn.Module, device: torch.device) -> None:
    """Registers a hook that moves the tensors among a module's arguments to a device."""

    # Tuples too: a layer receives the cosine and sine of RoPE as one.
    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        return tuple(map(move, value)) if isinstance(value, tuple) else value

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return move(args), {key: move(value) for key, value in kwargs.items()}

    setattr(hook, OWN_HOOK, True)
    module.register_forward_pre_hook(hook, with_kwargs=True)
