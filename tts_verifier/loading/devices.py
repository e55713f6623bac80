"""Checks devices and the dtype that a user names, before anything is loaded onto them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tts_verifier.errors import InputError

if TYPE_CHECKING:
    import torch

ALL_GPUS: Final = "cuda:all"
"""The name of all GPUs of this machine, where several devices are possible."""
DTYPES: Final = ("float32", "bfloat16", "float16", "float64")
"""Names of the dtypes that models compute in."""


def available_devices() -> list[str]:
    """Returns the devices of this machine, such as ["cpu", "cuda:0"]."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *(f"cuda:{i}" for i in range(gpus)), *mps]


def check_device(device: Any, *, argument: str = "device") -> torch.device | None:
    """Returns a device of this machine; None stays None.

    Args:
        device: a name such as "cuda:0", the number of a GPU, or a `torch.device`.
        argument: the constructor's argument that names it.

    Raises:
        InputError: it is no device, or this machine does not have it.
    """
    import torch

    if device is None:
        return None
    several = isinstance(device, (list, tuple)) or device == ALL_GPUS or "," in str(device)
    fault = "only a verifier is loaded onto several" if several else "that is no device"
    if isinstance(device, (str, int, torch.device)) and not isinstance(device, bool):
        try:
            parsed = torch.device(f"cuda:{device}" if isinstance(device, int) else device)
            if not (fault := _absence(parsed)):
                return parsed
        except (RuntimeError, ValueError, OverflowError):
            pass
    raise InputError(
        f"{argument} must be a device of this machine, one of {', '.join(available_devices())}; "
        f"got {str(device)!r}, and {fault}.",
        argument=argument,
    )


def check_devices(devices: Any, *, argument: str = "device") -> list[torch.device]:
    """Returns one or several devices of this machine; none for None.

    Args:
        devices: whatever `check_device` takes. Several GPUs are a list, or a text such as
            "cuda:0,1", "cuda:0,cuda:1" or `ALL_GPUS`.
        argument: the constructor's argument that names them.

    Raises:
        InputError: one is no device of this machine, or several are not GPUs that differ.
    """
    named = _split(devices)
    if not isinstance(named, (list, tuple)):
        one = check_device(named, argument=argument)
        return [] if one is None else [one]
    parsed = [check_device("" if d is None else d, argument=argument) for d in named]
    found = [_with_number(device) for device in parsed if device is not None]
    listed = ", ".join(map(str, found))
    if not found:
        raise InputError(
            f"{argument} must name at least one device; got {devices!r}.", argument=argument
        )
    if len(found) > 1 and any(device.type != "cuda" for device in found):
        raise InputError(
            "Several devices must be GPUs, each of which gets a copy of the model; got "
            f"{listed}. Name GPUs only, such as 'cuda:0,1', or one device.",
            argument=argument,
        )
    if len(set(found)) < len(found):
        raise InputError(
            "Several devices must differ, because each gets a copy of the model; got "
            f"{listed}. Name each of them once.",
            argument=argument,
        )
    return found


def _split(devices: Any) -> Any:
    """Returns a list of what a text names, if it names several; other values as they are."""
    if isinstance(devices, str) and devices == ALL_GPUS:
        # Without a GPU the name of one, whose check says so.
        return [name for name in available_devices() if name.startswith("cuda")] or "cuda"
    if not isinstance(devices, str) or "," not in devices:
        return devices
    parts = [part.strip() for part in devices.split(",")]
    kind, numbered, _ = parts[0].partition(":")
    # "cuda:0,1": what follows may leave out the kind.
    return [f"{kind}:{part}" if numbered and part.isdecimal() else part for part in parts]


def _with_number(device: torch.device) -> torch.device:
    """Returns the device with its number: "cuda" alone is the current one."""
    import torch

    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def _absence(device: torch.device) -> str:
    """Returns why this machine does not have a device; empty if it has it."""
    import torch

    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            return "torch finds no GPU here"
        return "" if (device.index or 0) < count else f"there are {count} GPUs, counted from 0"
    # "meta" holds no values, so nothing can be computed on it.
    if device.type == "meta":
        return "it holds no values"
    try:
        torch.empty(0, device=device)
    except Exception as error:  # every backend has errors of its own
        return f"torch cannot use it here ({type(error).__name__})"
    return ""


def check_dtype(dtype: Any) -> torch.dtype | None:
    """Returns a dtype to compute in; None stays None.

    Raises:
        InputError: it is not one of `DTYPES`.
    """
    import torch

    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if not isinstance(dtype, (str, torch.dtype)) or name not in DTYPES:
        raise InputError(
            f"dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {dtype!r}.",
            argument="dtype",
        )
    chosen: torch.dtype = getattr(torch, name)
    return chosen
