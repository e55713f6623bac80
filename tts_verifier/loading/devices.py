"""Checks the device and the dtype that a user names, before anything is loaded onto it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tts_verifier.errors import InputError

if TYPE_CHECKING:
    import torch

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
    fault = "that is no device"
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
