"""Where a pipeline computes, how large it is, and whether it may be moved."""

from __future__ import annotations

from typing import Any

from tts_verifier.memory import release, weight_bytes


def device_of(pipe: Any) -> str:
    """Returns where a pipeline computes, also when its weights wait elsewhere."""
    return str(getattr(pipe, "_execution_device", None) or getattr(pipe, "device", "cpu"))


def size(*pipes: Any) -> int | None:
    """Returns the bytes of the weights of pipelines; None where these must stay where they are.

    So it is where a user has them offloaded, spread over devices or quantised.
    """
    import torch

    parts = [part for pipe in pipes for part in getattr(pipe, "components", {}).values()]
    modules = [part for part in parts if isinstance(part, torch.nn.Module)]
    spread = any(getattr(pipe, "hf_device_map", None) for pipe in pipes)
    return None if spread or any(map(_stays, modules)) else weight_bytes(modules)


def move(device: str, *pipes: Any) -> None:
    """Moves pipelines and gives back the memory that they had."""
    before = {str(pipe.device) for pipe in pipes}
    for pipe in pipes:
        # That 16 bits do not run on a CPU: there it waits.
        pipe.to(device, silence_dtype_warnings=True)
    for place in before - {device}:
        release(place)


def _stays(module: Any) -> bool:
    if getattr(module, "is_quantized", False) or getattr(module, "hf_quantizer", None) is not None:
        return True
    return any(map(_has_hook_that_moves, module.modules()))


def _has_hook_that_moves(module: Any) -> bool:
    """Says whether accelerate or diffusers brings a module's weights and takes them away."""
    registry = getattr(module, "_diffusers_hook", None)
    grouped = registry is not None and registry.get_hook("group_offloading") is not None
    return grouped or hasattr(module, "_hf_hook")
