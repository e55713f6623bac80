"""Wan, one frame (`num_frames=1`): diffusers' own pipeline, with a search in every call.

    DiffusionPipeline.from_pretrained(
        MODEL, custom_pipeline="pipelines/verified_wan.py", trust_remote_code=True,
        verifier="GYX97/ImageDoctor",
    )

diffusers asks for `trust_remote_code` even for a local file; the code that it runs is this file,
not a checkpoint's. This file is written by `pipelines/write.py`.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from diffusers import WanPipeline

from tts_verifier.verified import search_as


class VerifiedWanPipeline(WanPipeline):
    """The base class with three more arguments, which go to a `tts_verifier.VerifiedPipeline`."""

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        vae: Any,
        scheduler: Any,
        transformer: Any = None,
        transformer_2: Any = None,
        boundary_ratio: Any = None,
        expand_timesteps: Any = False,
        verifier: Any = None,
        strategy: Any = None,
        options: Any = None,
    ) -> None:
        super().__init__(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            scheduler=scheduler,
            transformer=transformer,
            transformer_2=transformer_2,
            boundary_ratio=boundary_ratio,
            expand_timesteps=expand_timesteps,
        )
        self.search = (verifier, strategy, options)

    @wraps(WanPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 - the base's
        return search_as(WanPipeline, self)(*args, **kwargs)
