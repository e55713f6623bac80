"""ImageDoctor: four scores, two heatmaps, boxes and reasons from one vision-language model.

Importing this package loads no deep-learning library; asking for `ImageDoctor` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tts_verifier.verifiers.imagedoctor.verifier import ImageDoctor

__all__ = ["ImageDoctor"]


def __getattr__(name: str) -> Any:
    if name != "ImageDoctor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tts_verifier.verifiers.imagedoctor.verifier import ImageDoctor

    return ImageDoctor
