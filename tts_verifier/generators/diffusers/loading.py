"""From a name to a loaded diffusers pipeline, and what its call takes."""

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
"""What the bundled generator is called with; its T5 slot is empty, and 16 tokens of nothing
cost less than the default 256."""

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
"""Arguments that belong to a candidate, or to how its picture is read."""


def load_pipeline(model: str | Path, dtype: str | None = None, device: str | None = None) -> Any:
    """Loads a pipeline from a folder, a hub id or `"shapes"`.

    Components that the folder's `model_index.json` leaves empty (an absent T5, say) are
    passed as None, as diffusers wants it.

    Raises:
        CheckpointError: it cannot be found or loaded.
    """
    import torch
    from diffusers import DiffusionPipeline

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = dtype or ("float32" if place == "cpu" else "bfloat16")
    folder = BUNDLED_PIPELINE if model == "shapes" else model
    if model == "shapes" and not (BUNDLED_PIPELINE / "model_index.json").exists():
        raise CheckpointError(
            f"The bundled generator's weights belong in {BUNDLED_PIPELINE}, and are missing there. "
            "Install the package from its wheel or a full clone."
        )
    try:
        index = DiffusionPipeline.load_config(folder)
        empty = {k: None for k, v in index.items() if isinstance(v, list) and v == [None, None]}
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, kind), **empty)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"No pipeline could be loaded from {model}: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place)


def check_pipeline(pipe: Any) -> None:
    """Raises InputError when this is no pipeline that draws pictures for texts."""
    known = inspect.signature(type(pipe).__call__).parameters if callable(pipe) else {}
    if lacking := [name for name in ("prompt", "generator", "output_type") if name not in known]:
        raise InputError(
            "Pictures are drawn by a diffusers text-to-image pipeline, whose call takes prompt, "
            f"generator and output_type; that of {type(pipe).__name__} takes no "
            f"{', '.join(lacking)}."
        )


def check_reserved(call: Mapping[str, Any]) -> None:
    """Raises InputError when a generator's `call` sets what is set for every candidate."""
    if taken := sorted(RESERVED_ARGUMENTS.intersection(call)):
        raise InputError(
            f"call must leave {', '.join(taken)} to the search, which sets it for every "
            "candidate. Leave it out."
        )


def check_call(pipe: Any, call: Mapping[str, Any]) -> None:
    """Raises InputError when `call` names what the pipeline does not take."""
    known = inspect.signature(type(pipe).__call__).parameters
    if unknown := sorted(set(call) - set(known)):
        names = [name for name in known if name not in ("self", "kwargs")]
        raise InputError(
            f"{type(pipe).__name__} does not take {', '.join(unknown)}. "
            f"{suggestion(unknown[0], names)}"
        )
