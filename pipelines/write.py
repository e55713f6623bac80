"""Writes the custom pipelines, one file for each family of diffusers pipelines.

    python pipelines/write.py

diffusers loads a custom pipeline from a single file, and finds its components by the names of the
parameters of `__init__`. So each family needs a file of its own that repeats the names.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import diffusers

FAMILIES = {
    "auraflow": ("AuraFlow", "AuraFlowPipeline"),
    "flux": ("FLUX.1 dev and schnell", "FluxPipeline"),
    "hunyuan_dit": ("HunyuanDiT", "HunyuanDiTPipeline"),
    "kandinsky3": ("Kandinsky 3", "Kandinsky3Pipeline"),
    "lumina2": ("Lumina 2", "Lumina2Pipeline"),
    "pixart_sigma": ("PixArt-Sigma", "PixArtSigmaPipeline"),
    "qwen_image": ("Qwen-Image", "QwenImagePipeline"),
    "sana": ("Sana", "SanaPipeline"),
    "sd15": ("Stable Diffusion 1.5 and 2.1", "StableDiffusionPipeline"),
    "sd3": ("Stable Diffusion 3 and 3.5", "StableDiffusion3Pipeline"),
    "sdxl": ("Stable Diffusion XL", "StableDiffusionXLPipeline"),
    "wan": ("Wan, one frame (`num_frames=1`)", "WanPipeline"),
    "z_image": ("Z-Image", "ZImagePipeline"),
}
"""The models of a family, and the class of their pipeline, by the end of the file's name."""

SOURCE = '''\
"""{models}: diffusers' own pipeline, with a search in every call.

    DiffusionPipeline.from_pretrained(
        MODEL, custom_pipeline="pipelines/verified_{family}.py", trust_remote_code=True,
        verifier="GYX97/ImageDoctor",
    )

diffusers asks for `trust_remote_code` even for a local file; the code that it runs is this file,
not a checkpoint's. This file is written by `pipelines/write.py`.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from diffusers import {base}

from tts_verifier.verified import search_as


class Verified{base}({base}):
    """The base class with three more arguments, which go to a `tts_verifier.VerifiedPipeline`."""

    def __init__(
        self,
{parameters}
        verifier: Any = None,
        strategy: Any = None,
        options: Any = None,
    ) -> None:
        super().__init__(
{arguments}
        )
        self.search = (verifier, strategy, options)

    @wraps({base}.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 - the base's
        return search_as({base}, self)(*args, **kwargs)
'''


def source(family: str) -> str:
    """Returns the text of a family's file."""
    models, base = FAMILIES[family]
    signature = inspect.signature(getattr(diffusers, base).__init__)
    components = [p for p in signature.parameters.values() if p.name != "self"]
    parameters = [
        f"{p.name}: Any" if p.default is p.empty else f"{p.name}: Any = {p.default!r}"
        for p in components
    ]
    return SOURCE.format(
        models=models,
        family=family,
        base=base,
        parameters="\n".join(f"        {parameter}," for parameter in parameters),
        arguments="\n".join(f"            {p.name}={p.name}," for p in components),
    )


if __name__ == "__main__":
    for family in FAMILIES:
        path = Path(__file__).with_name(f"verified_{family}.py")
        path.write_text(source(family), encoding="utf-8")
