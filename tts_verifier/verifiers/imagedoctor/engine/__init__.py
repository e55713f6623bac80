"""Generates ImageDoctor's replies and heatmaps in batches: schedule, prefill, decode, finish.

Importing this folder loads no deep-learning library; its names are loaded when asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tts_verifier.verifiers.imagedoctor.engine.engine import Engine, generate
    from tts_verifier.verifiers.imagedoctor.engine.heatmaps import MapDecoder, MapQueue
    from tts_verifier.verifiers.imagedoctor.engine.kv_cache import sequences_that_fit

__all__ = ["Engine", "MapDecoder", "MapQueue", "generate", "sequences_that_fit"]

_MODULES = {
    "Engine": "engine",
    "MapDecoder": "heatmaps",
    "MapQueue": "heatmaps",
    "generate": "engine",
    "sequences_that_fit": "kv_cache",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
