"""FLUX.1 dev and schnell: diffusers' own pipeline, with a search in every call.

    DiffusionPipeline.from_pretrained(
        MODEL, custom_pipeline="pipelines/verified_flux.py", trust_remote_code=True,
        verifier="GYX97/ImageDoctor",
    )

diffusers asks for `trust_remote_code` even for a local file; the code that it runs is this file,
not a checkpoint's. This file is written by `pipelines/write.py`.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from diffusers import FluxPipeline

from tts_verifier.verified import search_as


class VerifiedFluxPipeline(FluxPipeline):
    """The base class with three more arguments, which go to a `tts_verifier.VerifiedPipeline`."""

    def __init__(
        self,
        scheduler: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        text_encoder_2: Any,
        tokenizer_2: Any,
        transformer: Any,
        image_encoder: Any = None,
        feature_extractor: Any = None,
        verifier: Any = None,
        strategy: Any = None,
        options: Any = None,
    ) -> None:
        super().__init__(
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            transformer=transformer,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
        self.search = (verifier, strategy, options)

    @wraps(FluxPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 - the base's
        return search_as(FluxPipeline, self)(*args, **kwargs)
