"""PixArt-Sigma: diffusers' own pipeline, with a search in every call.

    DiffusionPipeline.from_pretrained(
        MODEL, custom_pipeline="pipelines/verified_pixart_sigma.py", trust_remote_code=True,
        verifier="GYX97/ImageDoctor",
    )

diffusers asks for `trust_remote_code` even for a local file; the code that it runs is this file,
not a checkpoint's. This file is written by `pipelines/write.py`.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from diffusers import PixArtSigmaPipeline

from tts_verifier.verified import search_as


class VerifiedPixArtSigmaPipeline(PixArtSigmaPipeline):
    """The base class with three more arguments, which go to a `tts_verifier.VerifiedPipeline`."""

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        vae: Any,
        transformer: Any,
        scheduler: Any,
        verifier: Any = None,
        strategy: Any = None,
        options: Any = None,
    ) -> None:
        super().__init__(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            transformer=transformer,
            scheduler=scheduler,
        )
        self.search = (verifier, strategy, options)

    @wraps(PixArtSigmaPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 - the base's
        return search_as(PixArtSigmaPipeline, self)(*args, **kwargs)
