"""LAION's improved aesthetic predictor: a small head on the picture features of CLIP ViT-L/14.

Follows `simple_inference.py` of github.com/christophschuhmann/improved-aesthetic-predictor
(Apache-2.0), which image-reward 1.5 repeats as `models/AestheticScore.py`. Weights of the head:
sac+logos+ava1-l14-linearMSE.pth of that repository (Apache-2.0), which trl-lib hosts on the hub as
aesthetic-model.pth. CLIP: openai/clip-vit-large-patch14.

Pictures: as in `imagereward`. The prompt is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image
from torch import Tensor

from tts_verifier.choice.objective import Objective
from tts_verifier.verifiers.contrastive.files import judge_file, read_weights
from tts_verifier.verifiers.contrastive.imagereward import load_head, resize_and_crop
from tts_verifier.verifiers.contrastive.judge import ContrastiveJudge
from tts_verifier.verifiers.contrastive.texts import Tokens
from tts_verifier.verifiers.contrastive.towers import clip_folder, image_features, load_clip_folder

AESTHETIC_FILE: Final = "aesthetic-model.pth"


class Aesthetic(ContrastiveJudge):
    """Scores `aesthetic`: how much people like a picture, whatever the prompt, about 1 to 10.

    Safe to share between threads: calls wait for each other.

    Args:
        model: a folder or a hub id with the weights of the CLIP ViT-L/14.
        head: a file with the head's weights, or a folder or a hub id with aesthetic-model.pth.
        device: see `ContrastiveJudge`, as `dtype` and `batch_size` are.
        dtype: of CLIP's weights; the head computes in float32.
        batch_size: pictures at a time.
        revision: branch, tag or commit of `model` on the hub.

    Raises:
        CheckpointError: a file is missing, or the parts do not fit together.
        InputError: an argument is not usable.
    """

    objective = Objective({"aesthetic": 1.0})
    score_names = ("aesthetic",)

    def __init__(
        self,
        model: str | Path = "openai/clip-vit-large-patch14",
        *,
        head: str | Path = "trl-lib/ddpo-aesthetic-predictor",
        device: str | int | None = None,
        dtype: str | None = None,
        batch_size: int = 32,
        revision: str | None = None,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        tensors = read_weights(source := judge_file(head, AESTHETIC_FILE))
        self.model = load_clip_folder(clip_folder(model, revision), self.dtype)
        width = self.model.config.projection_dim
        self.head = load_head(tensors, width, source, "")
        self._set_parts(
            self.model,
            self.head,
            settings={
                "verifier": "aesthetic",
                "model": str(model),
                "revision": revision,
                "head": str(head),
            },
        )

    def _prepare(self, image: Image.Image) -> Tensor:
        return resize_and_crop(image, self.model.config.vision_config.image_size)

    def _scores(self, pixels: Tensor, tokens: Sequence[Tokens]) -> dict[str, Tensor]:
        return {"aesthetic": self.head(image_features(self.model, pixels).float())[:, 0]}
