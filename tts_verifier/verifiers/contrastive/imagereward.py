"""ImageReward: a BLIP whose text tower looks at the picture, and a small head.

Follows `ImageReward/ImageReward.py` and `models/BLIP/*.py` of image-reward 1.5
(github.com/zai-org/ImageReward, arXiv:2304.05977; Apache-2.0, BLIP is BSD-3-Clause). Weights:
THUDM/ImageReward, ImageReward.pt (Apache-2.0). The official package fails on transformers 5.

Pictures: the shorter side is resized to 224 (bicubic) and the centre is cropped. Prompts: 35 tokens
of bert-base-uncased.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tts_verifier.choice.objective import Objective
from tts_verifier.errors import CheckpointError
from tts_verifier.verifiers.contrastive.blip import (
    IMAGE_PREFIX,
    TEXT_PREFIX,
    load_image_tower,
    load_text_tower,
)
from tts_verifier.verifiers.contrastive.files import (
    PLAIN_FILES,
    build_module,
    judge_file,
    judge_folder,
    read_weights,
)
from tts_verifier.verifiers.contrastive.hpsv2 import standardised
from tts_verifier.verifiers.contrastive.judge import ContrastiveJudge
from tts_verifier.verifiers.contrastive.texts import Tokens, ids_and_mask
from tts_verifier.verifiers.contrastive.towers import without_far_ends

REWARD_FILE: Final = "ImageReward.pt"
PROMPT_POSITIONS: Final = 35
"""Tokens that the official code keeps of a prompt, the first and the last included."""
REWARD_MEAN: Final = 0.16717362830052426
REWARD_DEVIATION: Final = 1.0333394966054072
_UNUSED: Final = ("blip.vision_proj.", "blip.text_proj.")


class ImageReward(ContrastiveJudge):
    """Scores `imagereward`: how much people would like a picture of the prompt, often -2 to 2.

    Safe to share between threads: calls wait for each other.

    Args:
        model: a hub id or a folder with ImageReward.pt (or the same as .safetensors), or such a
            file itself. The sizes of the towers follow from the weights.
        tokenizer: a folder or a hub id with BERT's tokenizer.
        device: see `ContrastiveJudge`, as `dtype` and `batch_size` are.
        dtype: of the weights; the head computes in float32, as in the official code.
        batch_size: pictures at a time.
        revision: branch, tag or commit of `model` on the hub.

    Raises:
        CheckpointError: a file is missing, or the parts do not fit together.
        InputError: an argument is not usable.
    """

    objective = Objective({"imagereward": 1.0})
    score_names = ("imagereward",)

    def __init__(
        self,
        model: str | Path = "THUDM/ImageReward",
        *,
        tokenizer: str | Path = "google-bert/bert-base-uncased",
        device: str | int | None = None,
        dtype: str | None = None,
        batch_size: int = 32,
        revision: str | None = None,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        source = judge_file(model, REWARD_FILE, revision=revision)
        tensors = read_weights(source)
        self.image_tower = load_image_tower(tensors, source, self.dtype)
        self.text_tower = load_text_tower(tensors, source, self.dtype)
        self.head = load_head(tensors, self.text_tower.config.hidden_size, source, "mlp.")
        known = (IMAGE_PREFIX, TEXT_PREFIX, "mlp.", *_UNUSED)
        if other := [name for name in tensors if not name.startswith(known)]:
            raise CheckpointError(
                f"{source} must hold ImageReward's weights alone, it also has {other[0]}."
            )
        loaded = load_bert_tokenizer(tokenizer, self.text_tower.config.vocab_size)
        self._set_parts(
            self.image_tower,
            self.text_tower,
            self.head,
            tokenizer=loaded,
            positions=PROMPT_POSITIONS,
            settings={
                "verifier": "imagereward",
                "model": str(model),
                "revision": revision,
                "tokenizer": str(tokenizer),
            },
        )

    def _prepare(self, image: Image.Image) -> Tensor:
        return resize_and_crop(image, self.image_tower.config.image_size)

    def _scores(self, pixels: Tensor, tokens: Sequence[Tokens]) -> dict[str, Tensor]:
        pictures = self.image_tower(pixels).last_hidden_state
        ids, mask = ids_and_mask(tokens, self._device)
        output = self.text_tower(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=pictures,
            encoder_attention_mask=torch.ones_like(pictures[..., 0], dtype=torch.long),
        )
        rewards = self.head(output.last_hidden_state[:, 0].float())[:, 0]
        return {"imagereward": (rewards - REWARD_MEAN) / REWARD_DEVIATION}


def resize_and_crop(image: Image.Image, side: int) -> Tensor:
    """Resizes the shorter side of an RGB picture, crops its centre and normalises it.

    As torchvision's `Resize` and `CenterCrop` do: sizes are cut to whole pixels, and the corner of
    the window is rounded to the even pixel.

    Returns:
        float32 (3, side, side).
    """
    image = without_far_ends(image)
    short = min(image.size)
    width, height = (side if n == short else int(side * n / short) for n in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    image = image.crop((left, top, left + side, top + side))
    return standardised(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)


def load_head(tensors: Mapping[str, Tensor], width: int, source: Path, prefix: str) -> nn.Module:
    """Loads the head of five linear layers that ImageReward shares with LAION's predictor.

    Args:
        tensors: of the checkpoint.
        width: of the features.
        source: of the weights, for messages.
        prefix: of its names, before "layers.0.weight".

    Raises:
        CheckpointError: a layer is missing, or has another size.
    """
    sizes = (width, 1024, 128, 64, 16, 1)

    def make() -> nn.Sequential:
        # Under the numbers that the official dropout layers leave.
        places = zip(("0", "2", "4", "6", "7"), sizes[:-1], sizes[1:], strict=True)
        return nn.Sequential(OrderedDict((n, nn.Linear(i, o)) for n, i, o in places))

    own = {
        name.removeprefix(f"{prefix}layers."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}layers.")
    }
    return build_module(make, own, source=source, dtype=torch.float32)


def load_bert_tokenizer(tokenizer: str | Path, vocabulary: int) -> Any:
    """Loads BERT's tokenizer.

    Args:
        tokenizer: a folder or a hub id.
        vocabulary: the number of tokens that the model knows.

    Raises:
        CheckpointError: it is no BERT tokenizer, or not the one that the model was trained with.
    """
    from transformers import BertTokenizer

    folder = judge_folder(tokenizer, files=PLAIN_FILES)
    # Without them transformers makes a tokenizer that knows no word.
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt")):
        raise CheckpointError(
            f"{folder} must have BERT's tokenizer; neither tokenizer.json nor vocab.txt is there."
        )
    try:
        loaded = BertTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises what its parts raise
        raise CheckpointError(
            f"{folder} must have BERT's tokenizer; transformers says: {str(error)[:200]}"
        ) from error
    size = len(loaded.get_vocab())
    # The official code adds two tokens that no prompt has.
    if not vocabulary - 2 <= size <= vocabulary:
        raise CheckpointError(
            f"The tokenizer does not fit the model: {folder} has {size} tokens and the model knows "
            f"{vocabulary}, of which two are its own. Name bert-base-uncased."
        )
    return loaded
