"""Stable Diffusion 1.5 and 2.1: diffusers' own pipeline, with a search in every call.

    DiffusionPipeline.from_pretrained(
        MODEL, custom_pipeline="pipelines/verified_sd15.py", trust_remote_code=True,
        verifier="GYX97/ImageDoctor",
    )

diffusers asks for `trust_remote_code` even for a local file; the code that it runs is this file,
not a checkpoint's. This file is written by `pipelines/write.py`.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from diffusers import StableDiffusionPipeline

from tts_verifier.verified import search_as


class VerifiedStableDiffusionPipeline(StableDiffusionPipeline):
    """The base class with three more arguments, which go to a `tts_verifier.VerifiedPipeline`."""

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any,
        feature_extractor: Any,
        image_encoder: Any = None,
        requires_safety_checker: Any = True,
        verifier: Any = None,
        strategy: Any = None,
        options: Any = None,
    ) -> None:
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )
        self.search = (verifier, strategy, options)

    @wraps(StableDiffusionPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 - the base's
        return search_as(StableDiffusionPipeline, self)(*args, **kwargs)
