"""HPSv2: the cosine of a CLIP ViT-H/14 that was trained on people's preferences.

Follows `hpsv2/img_score.py`, `hpsv2/src/open_clip/{model,transform,factory}.py` of hpsv2 1.2.0
(github.com/tgxs002/HPSv2, arXiv:2306.09341; Apache-2.0). Weights: xswu/HPSv2,
HPS_v2.1_compressed.pt (Apache-2.0); scores of v2.0 and v2.1 cannot be compared.

Pictures: the longer side is resized to 224 (bicubic) and the rest is black, so nothing is cropped.
Official code resizes a tensor, which torchvision smooths from 0.17 on (`antialias=True`) and did
not before (`antialias=False`). Prompts: 77 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from tts_verifier.choice.objective import Objective
from tts_verifier.loading.regular_files import user_path
from tts_verifier.verifiers.contrastive.files import judge_file, read_weights
from tts_verifier.verifiers.contrastive.judge import ContrastiveJudge
from tts_verifier.verifiers.contrastive.open_clip import transformers_names
from tts_verifier.verifiers.contrastive.texts import Tokens
from tts_verifier.verifiers.contrastive.towers import (
    image_features,
    load_clip,
    load_clip_folder,
    load_clip_processor,
    processor_folder,
    read_clip_config,
    text_features,
)
from tts_verifier.verifiers.judge_options import check_flags

WEIGHTS_FILE: Final = "HPS_v2.1_compressed.pt"
MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
"""Of red, green and blue in [0, 1]: `OPENAI_DATASET_MEAN` of `open_clip/constants.py`."""
DEVIATION: Final = (0.26862954, 0.26130258, 0.27577711)
"""`OPENAI_DATASET_STD`."""


class HPSv2(ContrastiveJudge):
    """Scores `hpsv2`: how much people would like a picture of the prompt, often 0.15 to 0.35.

    Safe to share between threads: calls wait for each other.

    Args:
        model: a hub id or a folder with HPS_v2.1_compressed.pt (or the same as .safetensors), such
            a file itself, or a folder of a `CLIPModel` (with config.json).
        base: a folder or a hub id with config and tokenizer of the CLIP that it was trained from.
            A folder of a `CLIPModel` has a config of its own.
        antialias: whether large pictures are smoothed when they are resized, see above.
        device: see `ContrastiveJudge`, as `dtype` and `batch_size` are.
        dtype: of the weights.
        batch_size: pictures at a time.
        revision: branch, tag or commit of `model` on the hub.

    Raises:
        CheckpointError: a file is missing, or the parts do not fit together.
        InputError: an argument is not usable.
    """

    objective = Objective({"hpsv2": 1.0})
    score_names = ("hpsv2",)

    def __init__(
        self,
        model: str | Path = "xswu/HPSv2",
        *,
        base: str | Path = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        antialias: bool = True,
        device: str | int | None = None,
        dtype: str | None = None,
        batch_size: int = 32,
        revision: str | None = None,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        check_flags(antialias=antialias)
        self.antialias = antialias
        processor = processor_folder(base)
        if (folder := user_path(model)).joinpath("config.json").exists():
            self.model = load_clip_folder(folder, self.dtype)
        else:
            source = judge_file(model, WEIGHTS_FILE, revision=revision)
            tensors = transformers_names(read_weights(source))
            self.model = load_clip(read_clip_config(processor), tensors, source, self.dtype)
        self._set_parts(
            self.model,
            tokenizer=load_clip_processor(processor, self.model.config).tokenizer,
            positions=self.model.config.text_config.max_position_embeddings,
            settings={
                "verifier": "hpsv2",
                "model": str(model),
                "revision": revision,
                "base": str(base),
                "antialias": antialias,
            },
        )

    def _prepare(self, image: Image.Image) -> Tensor:
        side = self.model.config.vision_config.image_size
        return resize_and_pad(image, side, antialias=self.antialias, device=self._device)

    def _scores(self, pixels: Tensor, tokens: Sequence[Tokens]) -> dict[str, Tensor]:
        pictures = image_features(self.model, pixels).float()
        return {"hpsv2": (pictures * text_features(self.model, tokens).float()).sum(dim=-1)}


def resize_and_pad(
    image: Image.Image,
    side: int,
    *,
    antialias: bool = True,
    device: torch.device | None = None,
) -> Tensor:
    """Resizes the longer side of an RGB picture, pads it to a square and normalises it.

    Args:
        image: the picture.
        side: of the square, in pixels.
        antialias: whether it is smoothed before it shrinks.
        device: where to compute; None = the CPU.

    Returns:
        float32 (3, side, side); the padding is black.
    """
    raw = torch.from_numpy(np.array(image)).to(device or "cpu")
    pixels = raw.permute(2, 0, 1).contiguous().float() / 255
    scale = side / max(image.size)
    # The official code makes no padding where the longer side fits already, and then fails.
    height, width = (max(round(n * scale), 1) for n in pixels.shape[1:])
    if scale != 1:
        pixels = interpolate(
            pixels[None],
            size=(height, width),
            mode="bicubic",
            align_corners=False,
            antialias=antialias,
        )[0]
    below, right = side - height, side - width
    pixels = pad(pixels, (right // 2, right - right // 2, below // 2, below - below // 2))
    return standardised(pixels)


def standardised(pixels: Tensor) -> Tensor:
    """Returns pixels (3, H, W) in [0, 1] minus CLIP's mean, divided by its deviation."""
    mean, deviation = pixels.new_tensor(MEAN), pixels.new_tensor(DEVIATION)
    return (pixels - mean[:, None, None]) / deviation[:, None, None]
