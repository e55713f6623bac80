"""Loads a diffusers pipeline by name, and checks the arguments of its call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import CheckpointError, InputError
from tts_verifier.registry import suggestion

BUNDLED_PIPELINE: Final = Path(__file__).parents[2] / "shapes" / "weights" / "generator"
BUNDLED_CALL: Final = {
    "num_inference_steps": 20,
    "guidance_scale": 4.0,
    "max_sequence_length": 16,
}
"""The call of the bundled generator. It has no T5 encoder, and 16 empty T5 tokens cost less than
the default 256."""

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
"""Arguments that a generator sets for each candidate, or to read its image."""


def load_pipeline(model: str | Path, dtype: str | None = None, device: str | None = None) -> Any:
    """Loads a pipeline from a folder, a hub id or `"shapes"`.

    Args:
        model: the folder, the hub id or `"shapes"`, the bundled pipeline.
        dtype: "float32", "bfloat16" or "float16"; None = float32 on a CPU, bfloat16 elsewhere.
        device: where to load it; None = the first GPU, else the CPU.

    Raises:
        CheckpointError: it cannot be found or loaded.
    """
    import torch
    from diffusers import DiffusionPipeline

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    folder = BUNDLED_PIPELINE if model == "shapes" else model
    if model == "shapes" and not (BUNDLED_PIPELINE / "model_index.json").exists():
        raise CheckpointError(
            f"The bundled generator's weights belong in {BUNDLED_PIPELINE}, and are missing there. "
            "Install the package from its wheel or a full clone."
        )
    try:
        # diffusers needs a None for every component that the folder leaves out, such as T5.
        index = DiffusionPipeline.load_config(folder)
        empty = {k: None for k, v in index.items() if isinstance(v, list) and v == [None, None]}
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype), **empty)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"No pipeline could be loaded from {model}: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def check_pipeline(pipe: Any) -> None:
    """Raises InputError when `pipe` is no text-to-image pipeline."""
    parameters = inspect.signature(type(pipe).__call__).parameters if callable(pipe) else {}
    names = ("prompt", "generator", "output_type")
    if missing := [name for name in names if name not in parameters]:
        raise InputError(
            "Pictures are drawn by a diffusers text-to-image pipeline, whose call takes prompt, "
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
    """Raises InputError when `call` has an argument that the pipeline does not take."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    if unknown := sorted(set(call) - set(parameters)):
        names = [name for name in parameters if name not in ("self", "kwargs")]
        raise InputError(
            f"{type(pipe).__name__} does not take {', '.join(unknown)}. "
            f"{suggestion(unknown[0], names)}"
        )
