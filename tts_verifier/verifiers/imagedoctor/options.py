"""The options with which users load an ImageDoctor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

import torch

from tts_verifier.errors import InputError
from tts_verifier.loading.devices import check_devices
from tts_verifier.verifiers.imagedoctor.checkpoint.device_map import DeviceMap
from tts_verifier.verifiers.imagedoctor.image.letterbox import FitMode
from tts_verifier.verifiers.imagedoctor.model.quantise import check_supports_fp8

Precision = Literal["fp8"]


class ImageDoctorOptions(TypedDict, total=False):
    """How to load and run an ImageDoctor; every key may be absent."""

    revision: str | None
    """Branch, tag or commit of a hub id."""
    local_files_only: bool
    """Look for a hub id in the cache only."""
    dtype: torch.dtype | str | None
    """The dtype to compute in, None = bfloat16 on a GPU, float32 on a CPU."""
    precision: Precision | None
    """"fp8" rounds the weights of the language model and the vision tower to 8 bits once they are
    loaded, and then takes about half the memory for them. On an H100 it verifies 1.3 to 1.5 times
    as many images a second; GPUs older than Ada are refused, and a CPU is slow. None = dtype."""
    device: torch.device | str | Sequence[torch.device | str | int] | None
    """The main device, None = the GPU if there is one. Several GPUs, such as "cuda:0,1", "cuda:all"
    or a list, get a copy of the model each and share the images of a call."""
    device_map: DeviceMap | None
    """Spreads the language model's layers; "auto" = over all GPUs. See `LayerDevices`."""
    fit: FitMode
    """How an image is fitted into the model's square: "squash" (official) or "pad"."""
    batch_size: int | None
    """Images at a time on each device, None = as many as the queue, its free memory and the device
    suggest."""
    heatmaps: bool | None
    """Whether to decode heatmaps, None = with detail "diagnose" only."""
    answer_template: bool
    """With detail "score", give the text of the answer and ask for its digits alone."""
    max_new_tokens: int | None
    """The most tokens of a reply, None = the checkpoint's limit, or 2048."""


def check_precision(precision: object) -> None:
    """Raises InputError unless the value is a precision or None."""
    if precision not in (None, "fp8"):
        raise InputError(
            f"precision must be 'fp8' or left out, got {precision!r}.", argument="precision"
        )


def check_positive(name: str, value: int) -> None:
    """Raises InputError unless the value of an option is a positive integer below 2**24."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**24:
        rule = "a positive integer" if not isinstance(value, int) or value < 2 else "below 2**24"
        raise InputError(f"{name} must be {rule}, got {value!r}.", argument=name)


def given_devices(options: ImageDoctorOptions) -> list[torch.device]:
    """Returns the devices that the options name, checked with the options that concern them."""
    devices = check_devices(options.get("device"))
    if len(devices) > 1 and (device_map := options.get("device_map")) is not None:
        raise InputError(
            "Each of several devices gets a copy of the whole model, and device_map spreads one "
            f"model; got {', '.join(map(str, devices))} and {device_map!r}. Give one of the two.",
            argument="device_map",
        )
    if options.get("precision") == "fp8":
        for device in devices:
            check_supports_fp8(device)
    return devices
