"""Loads an image-text-to-text model of transformers, from a folder or from the hub."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Final, TypedDict

import torch

from tts_verifier.errors import CheckpointError, InputError, RunWarning, suggestion
from tts_verifier.loading.devices import check_device, check_dtype
from tts_verifier.loading.hub import HUB_ID, download
from tts_verifier.loading.memory import fits_on_device, weight_bytes
from tts_verifier.loading.regular_files import user_path

# No pickles and no Python files: neither is read, and both could run code.
_FETCHED: Final = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


class LoadingOptions(TypedDict, total=False):
    """Where and how a model computes; every key may be absent."""

    device: torch.device | str | None
    """None = the GPU if there is one. A model that does not fit waits in host memory, and a run
    moves it to the GPU in turns with the generator."""
    dtype: torch.dtype | str | None
    """None = bfloat16 on a GPU, float32 on a CPU."""
    batch_size: int | None
    """Questions at a time, None = 32 on a GPU and 4 on a CPU; halved when memory runs out."""
    revision: str | None
    """Branch, tag or commit of a hub id."""
    local_files_only: bool
    """Look for a hub id in the cache only."""


def check_loading(options: LoadingOptions) -> None:
    """Raises InputError unless options are known and usable, before anything is downloaded."""
    known = LoadingOptions.__annotations__
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"Unknown options {', '.join(unknown)}. {suggestion(unknown[0], known)}")
    size = options.get("batch_size")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise InputError(
            f"batch_size must be a positive integer, got {size!r}.", argument="batch_size"
        )
    check_device(options.get("device"))
    check_dtype(options.get("dtype"))


def find_folder(name: str | Path, options: LoadingOptions) -> Path:
    """Returns the folder of a checkpoint; downloads a hub id that is not cached.

    Raises:
        CheckpointError: there is no such checkpoint, or the hub cannot be reached.
    """
    folder = user_path(name)
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(str(name)):
        raise CheckpointError(
            "A model is a folder, or a hub id like 'Qwen/Qwen2.5-VL-7B-Instruct'; "
            f"{str(name)!r} is neither."
        )
    return download(
        str(name),
        _FETCHED,
        revision=options.get("revision"),
        offline=options.get("local_files_only", False),
    )


def family_config(folder: Path) -> Any:
    """Reads the config of a checkpoint folder.

    Raises:
        CheckpointError: there is none, or this transformers knows no image-text-to-text model
            of its type.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as FAMILIES,
    )

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} must hold the config.json of a model that transformers knows: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    if config.model_type not in FAMILIES:
        raise CheckpointError(
            f"This needs an image-text-to-text model, such as Qwen2.5-VL; {folder} is a "
            f"{config.model_type}."
        )
    return config


def usual_device(options: LoadingOptions) -> torch.device:
    """Returns the device that the user names, or else the GPU if there is one."""
    named = check_device(options.get("device"))
    if named is not None:
        return named
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def usual_dtype(options: LoadingOptions) -> torch.dtype:
    """Returns the dtype that the user names, or else the usual one of the device."""
    on_cpu = usual_device(options).type == "cpu"
    return check_dtype(options.get("dtype")) or (torch.float32 if on_cpu else torch.bfloat16)


def load_family_model(folder: Path, config: Any, options: LoadingOptions) -> Any:
    """Loads the model of a checkpoint folder into host memory, in eval mode.

    Raises:
        CheckpointError: weights are missing, or do not fit the config.
    """
    from transformers import AutoModelForImageTextToText

    try:
        # With `output_loading_info` it returns two values, which its annotation leaves out.
        loader: Any = AutoModelForImageTextToText
        model, info = loader.from_pretrained(
            folder,
            config=config,
            dtype=usual_dtype(options),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} must hold the safetensors of a {config.model_type}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    # transformers gives random weights to what is missing.
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{folder} must hold all weights of a {config.model_type}; {len(missing)} are "
            f"missing: {', '.join(missing[:5])}."
        )
    return model.requires_grad_(False).eval()


def place(model: Any, options: LoadingOptions) -> str | None:
    """Moves a model to its device; returns the device if the model does not fit there now.

    A model that does not fit stays in host memory, unless the user named the device.
    """
    device = usual_device(options)
    nbytes = weight_bytes([model])
    if options.get("device") is None and not fits_on_device(nbytes, str(device)):
        warnings.warn(
            f"The {nbytes / 2**30:.1f} GiB of {type(model).__name__} do not fit on {device} beside "
            "what is there. It waits in host memory, and a run moves it to the GPU in turns with "
            "the generator. Give a device to place it yourself.",
            RunWarning,
            stacklevel=4,
        )
        return str(device)
    model.to(device)
    return None
