"""Loads a diffusers pipeline by name, and checks the arguments of its call."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import CheckpointError, InputError, TTSError, suggestion
from tts_verifier.loading.devices import check_device, check_dtype
from tts_verifier.loading.pipeline_folder import check_pipeline_folder
from tts_verifier.loading.regular_files import user_path

BUNDLED_PIPELINE: Final = Path(__file__).parents[2] / "shapes" / "weights" / "generator"
BUNDLED_CALL: Final = {
    "num_inference_steps": 20,
    "guidance_scale": 4.0,
    "max_sequence_length": 16,
}
"""The call of the bundled generator. It has no T5 encoder, and 16 empty T5 tokens cost less than
the default 256."""

BUNDLED_ADAPTERS: Final = BUNDLED_PIPELINE.with_name("lora")
LORA_FILE: Final = "pytorch_lora_weights.safetensors"
"""The name that diffusers gives adapters."""
LARGEST_SIZE: Final = 65_536
"""The most steps, images of a batch, or pixels along a side."""
_DIVISIBLE: Final = re.compile(r"divisible by (\d+)")
"""What pipelines say of a height or a width that they refuse."""
_ROUND_SIZES: Final = ("EasyAnimate", "HunyuanDiT", "Krea2")
"""Beginnings of the names of pipelines that round sizes before they check them."""
_PIPELINE_ID: Final = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?")

RESERVED_ARGUMENTS: Final = frozenset(
    {
        "prompt",
        "prompt_embeds",
        "generator",
        "latents",
        "output_type",
        "return_dict",
        "num_images_per_prompt",
        "num_videos_per_prompt",
    }
)
"""Arguments that a generator sets itself: for each candidate, or in order to read its image."""


def load_pipeline(model: str | Path, dtype: str | None = None, device: str | None = None) -> Any:
    """Loads a pipeline from a folder, a hub id or `"shapes"`.

    Args:
        model: the folder, the hub id or `"shapes"`, the bundled pipeline. Only safetensors are
            read, and no code that comes with them is run.
        dtype: a name of `DTYPES`; None = float32 on a CPU, bfloat16 elsewhere.
        device: where to load it; None = the first GPU, else the CPU.

    Raises:
        CheckpointError: it cannot be found, trusted or loaded.
        InputError: this machine has no such device, or there is no such dtype.
    """
    import torch
    from diffusers import DiffusionPipeline

    chosen, checked_dtype = check_device(device), check_dtype(dtype or None)
    if chosen is None:
        chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if checked_dtype is None:
        checked_dtype = torch.float32 if chosen.type == "cpu" else torch.bfloat16
    if model == "shapes" and not (BUNDLED_PIPELINE / "model_index.json").exists():
        raise CheckpointError(
            f"The bundled generator's weights belong in {BUNDLED_PIPELINE}, and are missing there. "
            "Install the package from its wheel or a full clone."
        )
    try:
        folder = BUNDLED_PIPELINE if model == "shapes" else _find_folder(model)
        check_pipeline_folder(folder)
        pipe = DiffusionPipeline.from_pretrained(
            folder, dtype=checked_dtype, use_safetensors=True, **_empty_components(folder)
        )
    except TTSError:
        raise
    except Exception as error:  # a config of a stranger may fail anywhere in the libraries
        reason = " ".join(str(error).split())[:600] or type(error).__name__
        raise CheckpointError(
            f"No pipeline could be loaded from {model}: {reason} Check the name; a hub id needs "
            "the network, or a copy that was downloaded before."
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(chosen)


def as_pipeline(
    model: Any,
    dtype: str | None = None,
    device: str | None = None,
    lora: str | Path | None = None,
) -> Any:
    """Returns a loaded pipeline as it is, or loads one by its name, perhaps with adapters.

    Raises:
        InputError: there are adapters for a loaded pipeline.
        CheckpointError: something cannot be loaded.
    """
    if isinstance(model, str | Path):
        pipe = load_pipeline(model, dtype, device)
        return pipe if lora is None else load_adapters(pipe, lora)
    if lora is not None:
        raise InputError(
            "lora belongs to a model that is loaded by its name. Give a loaded pipeline its "
            "adapters by pipe.load_lora_weights.",
            argument="lora",
        )
    return model


def load_adapters(pipe: Any, lora: str | Path) -> Any:
    """Loads adapters (LoRA) in the format of diffusers into a pipeline, and returns it.

    Args:
        pipe: the pipeline.
        lora: a .safetensors file, or a folder of `pytorch_lora_weights.safetensors`, such as
            `tts-train flow` writes; or `"shapes"`, the bundled ones, for the bundled pipeline.

    Raises:
        InputError: peft is not installed.
        CheckpointError: the adapters cannot be found or read, or are another model's.
    """
    if importlib.util.find_spec("peft") is None:
        raise InputError(
            'lora needs peft, which is not installed: pip install "tts-verifier[train]".',
            argument="lora",
        )
    path = BUNDLED_ADAPTERS if lora == "shapes" else user_path(lora)
    file = path / LORA_FILE if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file():
        raise CheckpointError(
            f"Adapters are a .safetensors file, or a folder with {LORA_FILE}; {file} is not there. "
            "tts-train flow writes them to OUTPUT/checkpoint."
        )
    try:
        pipe.load_lora_weights(file.parent, weight_name=file.name, use_safetensors=True)
    except Exception as error:  # a stranger's file may fail anywhere in the libraries
        reason = " ".join(str(error).split())[:600] or type(error).__name__
        raise CheckpointError(f"The adapters {file} do not fit the model: {reason}") from error
    return pipe


def _find_folder(model: str | Path) -> Path:
    """Returns the folder of a pipeline; one on the hub is downloaded if it is not cached."""
    from diffusers import DiffusionPipeline

    folder = user_path(model)
    if folder.is_dir():
        return folder
    if isinstance(model, Path) or not _PIPELINE_ID.fullmatch(model):
        raise CheckpointError(
            "No pipeline could be loaded from "
            f"{model}: it is no folder, and no hub id such as 'owner/name'."
        )
    # No pickles are downloaded, and no code.
    found = DiffusionPipeline.download(model, use_safetensors=True, **_empty_components(model))
    return Path(found)


def _empty_components(source: str | Path) -> dict[str, None]:
    """Returns a None for each component that a pipeline leaves out, such as T5: diffusers asks."""
    from diffusers import DiffusionPipeline

    index = DiffusionPipeline.load_config(source)
    return {k: None for k, v in index.items() if isinstance(v, list) and v == [None, None]}


def check_sizes(**sizes: int | None) -> None:
    """Raises InputError at the first argument that is neither None nor an integer in range."""
    for name, value in sizes.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and 1 <= value <= LARGEST_SIZE):
            rule = f"at most {LARGEST_SIZE}" if whole and value > 1 else "at least 1"
            raise InputError(f"{name} must be {rule}, got {value!r}.", argument=name)


def check_pipeline(pipe: Any) -> None:
    """Raises InputError when `pipe` is no text-to-image pipeline."""
    parameters = inspect.signature(type(pipe).__call__).parameters if callable(pipe) else {}
    names = ("prompt", "generator", "output_type")
    if missing := [name for name in names if name not in parameters]:
        raise InputError(
            "Images are generated by a diffusers text-to-image pipeline, whose call takes prompt, "
            f"generator and output_type; that of {type(pipe).__name__} takes no "
            f"{', '.join(missing)}."
        )


def check_reserved(call: Mapping[str, Any]) -> None:
    """Raises InputError when `call` sets an argument that a generator sets for each candidate."""
    if taken := sorted(RESERVED_ARGUMENTS.intersection(call)):
        raise InputError(
            f"call must leave {', '.join(taken)} to the search, which sets it for every "
            "candidate. Leave it out.",
            argument="call",
        )


def check_call(pipe: Any, call: Mapping[str, Any]) -> None:
    """Raises InputError when `call` has an argument or a size that the pipeline does not take."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    if unknown := sorted(set(call) - set(parameters)):
        names = [name for name in parameters if name not in ("self", "kwargs")]
        raise InputError(
            f"{type(pipe).__name__} does not take {', '.join(unknown)}. "
            f"{suggestion(unknown[0], names)}"
        )
    check_image_size(pipe, call)


def check_image_size(pipe: Any, call: Mapping[str, Any]) -> None:
    """Raises InputError when `call` has a height or a width that the pipeline cannot make.

    The rule is that of the pipeline's `check_inputs`, if it has one.
    """
    binning = inspect.signature(type(pipe).__call__).parameters.get("use_resolution_binning")
    if call.get("use_resolution_binning", binning and binning.default):
        return  # Another size is generated, and the image is resized.
    for side in ("height", "width"):
        given = call.get(side)
        # Pipelines take 0 and None for their own size.
        if not isinstance(given, Integral) or not given:
            continue
        pixels = int(given)
        multiple = _multiple_of_sides(pipe, pixels)
        name, most = type(pipe).__name__, _largest_side(pipe)
        least = max(multiple, _least_side(pipe))
        nearest = min(max(round(pixels / multiple) * multiple, least), most)
        if pixels % multiple or not least <= pixels <= most:
            multiples = f" and a multiple of {multiple}" if multiple > 1 else ""
            raise InputError(
                f"{side} must be from {least} to {most} pixels{multiples} for {name}, got "
                f"{pixels}. The nearest is {nearest}.",
                argument=side,
            )


def _multiple_of_sides(pipe: Any, side: int) -> int:
    """Returns what a pipeline wants a side of its images to be a multiple of; 1 if it is fine."""
    if type(pipe).__name__.startswith("ZImage"):
        return 2 * int(pipe.vae_scale_factor)  # Its call checks it, and no method of its own.
    check = getattr(pipe, "check_inputs", None)
    names = inspect.signature(check).parameters if check else {}
    if check is None or not {"height", "width"} <= set(names):
        return 1
    if type(pipe).__name__.startswith(_ROUND_SIZES):
        return 1
    usual = inspect.signature(type(pipe).__call__).parameters
    needed = {n: usual[n].default if n in usual else None for n in names}
    try:
        check(**{**needed, "prompt": "", "height": side, "width": side})
    except Exception as error:  # also of other arguments, which this call lacks
        if found := _DIVISIBLE.search(str(error)):
            return int(found[1])
    return 1


def _least_side(pipe: Any) -> int:
    """Returns the shortest side in pixels: one cell, which some pipelines round down to."""
    config = getattr(getattr(pipe, "image_processor", None), "config", None)
    return int(getattr(config, "vae_scale_factor", 1))


def _largest_side(pipe: Any) -> int:
    """Returns the longest side in pixels: that for which Stable Diffusion 3 has positions."""
    if not type(pipe).__name__.startswith("StableDiffusion3"):
        return LARGEST_SIZE
    config = pipe.transformer.config
    return int(config.pos_embed_max_size * config.patch_size * pipe.vae_scale_factor)
