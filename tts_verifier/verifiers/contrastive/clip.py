"""CLIPScore and PickScore: the cosine of a picture's and a prompt's features in CLIP.

CLIPScore, 100 * max(cos, 0): `torchmetrics.functional.multimodal.clip_score` 1.9.0 (Apache-2.0).
That of Hessel et al. (arXiv:2104.08718, github.com/jmhessel/clipscore, MIT) is `scale=2.5,
prefix="A photo depicts "`; it crops with torchvision, whose window lies one pixel further for
some odd sizes. Weights: openai/clip-vit-large-patch14 and its siblings (MIT code; OpenAI's model
card asks for research use).

PickScore, exp(logit_scale) * cos: README of github.com/yuvalkirstain/PickScore (MIT), `calc_probs`;
its softmax over the pictures of a prompt is `preference`. Weights: yuvalkirstain/PickScore_v1 with
the processor of laion/CLIP-ViT-H-14-laion2B-s32B-b79K (MIT).

Pictures: the shorter side is resized to 224 (bicubic) and the centre is cropped, so the ends of
long pictures are not seen. Prompts: 77 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from tts_verifier.choice.objective import Objective
from tts_verifier.errors import InputError
from tts_verifier.types import Setting
from tts_verifier.verifiers.contrastive.judge import ContrastiveJudge
from tts_verifier.verifiers.contrastive.texts import Tokens, encode_prompt
from tts_verifier.verifiers.contrastive.towers import (
    clip_folder,
    has_processor,
    image_features,
    load_clip_folder,
    load_clip_processor,
    processor_folder,
    text_features,
)
from tts_verifier.verifiers.judge_options import check_flags


class ClipScore(ContrastiveJudge):
    """Scores `clip`: how similar picture and prompt are, by default in [0, 100], often 20 to 35.

    Safe to share between threads: calls wait for each other.

    Args:
        model: a folder or a hub id with the weights of a `CLIPModel`.
        processor: a folder or a hub id with its processor; None = that of `model`.
        scale: the factor of the cosine; None = the model's own, exp(logit_scale).
        clamp: whether a negative cosine counts as 0.
        prefix: stands before every prompt.
        softmax: whether to add `preference`, the softmax of the scores of a call's pictures of one
            prompt, in [0, 1]. It depends on the other pictures of the call, so it suits `rerank`
            and not a run.
        device: see `ContrastiveJudge`, as `dtype` and `batch_size` are.
        dtype: of the weights.
        batch_size: pictures at a time.
        revision: branch, tag or commit of `model` on the hub.

    Raises:
        CheckpointError: a file is missing, or the parts do not fit together.
        InputError: an argument is not usable.
    """

    objective = Objective({"clip": 1.0})
    score_names: tuple[str, ...] = ("clip", "preference")
    score_name = "clip"
    usual_processor: str | None = None
    """Hub id of the processor, for a checkpoint without one."""

    def __init__(
        self,
        model: str | Path = "openai/clip-vit-large-patch14",
        *,
        processor: str | Path | None = None,
        scale: float | None = 100.0,
        clamp: bool = True,
        prefix: str = "",
        softmax: bool = False,
        device: str | int | None = None,
        dtype: str | None = None,
        batch_size: int = 32,
        revision: str | None = None,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        check_flags(clamp=clamp, softmax=softmax)
        number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if scale is not None and not (number and 0 < scale < float("inf")):
            raise InputError(
                f"scale must be a number above 0, got {scale!r:.80}; None = the model's own.",
                argument="scale",
            )
        if not isinstance(prefix, str):
            raise InputError(f"prefix must be a text, got {prefix!r:.80}.", argument="prefix")
        self.scale, self.clamp, self.prefix, self.softmax = scale, clamp, prefix, softmax
        self.score_names = (self.score_name, "preference") if softmax else (self.score_name,)
        folder = clip_folder(model, revision)
        self.model = load_clip_folder(folder, self.dtype)
        usual = None if has_processor(folder) else self.usual_processor
        place = folder if (named := processor or usual) is None else processor_folder(named)
        self.processor = load_clip_processor(place, self.model.config)
        settings: Mapping[str, Setting] = {
            "verifier": self.score_name,
            "model": str(model),
            "revision": revision,
            "processor": None if named is None else str(named),
            "scale": scale,
            "clamp": clamp,
            "prefix": prefix,
        }
        self._set_parts(
            self.model,
            tokenizer=self.processor.tokenizer,
            positions=self.model.config.text_config.max_position_embeddings,
            settings=settings,
        )

    def _encode(self, prompt: str) -> Tokens:
        return encode_prompt(self._tokenizer, self.prefix + prompt, self._positions)

    def _prepare(self, image: Image.Image) -> Tensor:
        return self.processor.pixels([image])[0]

    def _scores(self, pixels: Tensor, tokens: Sequence[Tokens]) -> dict[str, Tensor]:
        pictures = image_features(self.model, pixels).float()
        cosine = (pictures * text_features(self.model, tokens).float()).sum(dim=-1)
        if self.clamp:
            cosine = cosine.clamp(min=0)
        scale = self.model.logit_scale.float().exp() if self.scale is None else self.scale
        return {self.score_name: scale * cosine}

    def _finish(
        self, scores: list[dict[str, float]], prompts: Sequence[str]
    ) -> list[dict[str, float]]:
        if not self.softmax:
            return scores
        values = np.array([by_name[self.score_name] for by_name in scores])
        finished = []
        for value, prompt in zip(values, prompts, strict=True):
            rivals = values[[other == prompt for other in prompts]]
            # Against the largest, so that no exponential overflows; NaN stays NaN.
            top = np.max(rivals, initial=-np.inf, where=~np.isnan(rivals))
            preference = np.exp(value - top) / np.nansum(np.exp(rivals - top))
            finished.append({self.score_name: float(value), "preference": float(preference)})
        return finished


class PickScore(ClipScore):
    """Scores `pick`: which picture people would pick, unbounded, often 17 to 24.

    Only differences between pictures of one prompt mean something. Arguments as in `ClipScore`.

    Safe to share between threads: calls wait for each other.
    """

    objective = Objective({"pick": 1.0})
    score_names = ("pick", "preference")
    score_name = "pick"
    usual_processor = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

    def __init__(
        self,
        model: str | Path = "yuvalkirstain/PickScore_v1",
        *,
        processor: str | Path | None = None,
        softmax: bool = False,
        device: str | int | None = None,
        dtype: str | None = None,
        batch_size: int = 32,
        revision: str | None = None,
    ) -> None:
        super().__init__(
            model,
            processor=processor,
            scale=None,
            clamp=False,
            softmax=softmax,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            revision=revision,
        )
