"""Generates ImageDoctor's replies and heatmaps in batches: schedule, prefill, decode, finish.

One engine serves a list of requests, a run, a trainer that draws replies, and a server:

- A list or a generator of requests goes to `Engine.replies`.
- Replies are drawn instead of greedy with `requests.Sampling` in the engine's limits. A group of
  samples of one prompt is the same request with several seeds: `replace(request, seed=seed)`.
- `checkpoint.replace.copy_weights` changes the weights of an engine in place, between two replies.
- A `RequestQueue` takes requests from other threads while earlier ones are being answered, by an
  engine or by one on each of several devices.

Importing this folder loads no deep-learning library; its names are loaded when asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tts_verifier.verifiers.imagedoctor.engine.engine import Engine, generate
    from tts_verifier.verifiers.imagedoctor.engine.heatmaps import MapDecoder, MapQueue
    from tts_verifier.verifiers.imagedoctor.engine.request_queue import RequestQueue

__all__ = ["Engine", "MapDecoder", "MapQueue", "RequestQueue", "generate"]

_MODULES = {
    "Engine": "engine",
    "MapDecoder": "heatmaps",
    "MapQueue": "heatmaps",
    "RequestQueue": "request_queue",
    "generate": "engine",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
