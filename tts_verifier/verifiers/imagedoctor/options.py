"""Checks of the options with which users load an ImageDoctor."""

from __future__ import annotations

import torch

from tts_verifier.errors import InputError
from tts_verifier.interfaces import ImageDoctorOptions
from tts_verifier.loading.devices import check_devices
from tts_verifier.verifiers.imagedoctor.model.quantise import check_supports_fp8


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
