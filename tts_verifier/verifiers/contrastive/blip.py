"""BLIP's towers under their official names, and what transformers calls their weights.

Head size and the small constants are those of `vit.py`, `blip.py` and med_config.json of
image-reward 1.5; all sizes follow from the weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tts_verifier.errors import CheckpointError
from tts_verifier.verifiers.contrastive.files import build_module

IMAGE_PREFIX: Final = "blip.visual_encoder."
TEXT_PREFIX: Final = "blip.text_encoder."
_HEAD_SIZE: Final = 64
_IMAGE_SIZES: Final = ("cls_token", "pos_embed", "patch_embed.proj", "blocks.0.mlp.fc1")
_IMAGE_NAMES: Final = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
    (r"^norm\.", "post_layernorm."),
)


def load_image_tower(tensors: Mapping[str, Tensor], source: Path, dtype: torch.dtype) -> Any:
    """Loads a `BlipVisionModel` from the official names.

    Raises:
        CheckpointError: the weights are not those of BLIP.
    """
    from transformers import BlipVisionConfig, BlipVisionModel

    own = _own(tensors, IMAGE_PREFIX, source, needed=_IMAGE_SIZES)
    patch = own["patch_embed.proj.weight"].shape[-1]
    width = own["cls_token"].shape[-1]
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=own["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_layers(own, r"blocks\.(\d+)\."),
        num_attention_heads=width // _HEAD_SIZE,
        image_size=math.isqrt(own["pos_embed"].shape[1] - 1) * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    renamed = {}
    for name, tensor in own.items():
        for pattern, replacement in _IMAGE_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return build_module(lambda: BlipVisionModel(config), renamed, source=source, dtype=dtype)


def load_text_tower(tensors: Mapping[str, Tensor], source: Path, dtype: torch.dtype) -> Any:
    """Loads a `BlipTextModel`, whose names are the official ones.

    Raises:
        CheckpointError: the weights are not those of BLIP.
    """
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    words, positions = "embeddings.word_embeddings", "embeddings.position_embeddings"
    first = "encoder.layer.0.intermediate.dense"
    crossing = "encoder.layer.0.crossattention.self.key"
    own = _own(tensors, TEXT_PREFIX, source, needed=(words, positions, first, crossing))
    vocabulary, width = own[f"{words}.weight"].shape
    config = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=own[f"{crossing}.weight"].shape[1],
        intermediate_size=own[f"{first}.weight"].shape[0],
        num_hidden_layers=_layers(own, r"encoder\.layer\.(\d+)\."),
        num_attention_heads=width // _HEAD_SIZE,
        max_position_embeddings=own[f"{positions}.weight"].shape[0],
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        # It adds the layers that look at the picture; the attention stays that of an encoder.
        is_decoder=True,
        # They are not used; the usual ones may lie outside a small vocabulary.
        bos_token_id=0,
        eos_token_id=0,
        sep_token_id=0,
    )
    return build_module(
        lambda: BlipTextModel(config, add_pooling_layer=False),
        own,
        source=source,
        dtype=dtype,
        ignored=("embeddings.position_ids",),
    )


def _own(
    tensors: Mapping[str, Tensor], prefix: str, source: Path, *, needed: tuple[str, ...]
) -> dict[str, Tensor]:
    """Returns the tensors of a part without its prefix, if those are there that tell its sizes."""
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    missing = [name for name in needed if name not in own and f"{name}.weight" not in own]
    if missing:
        raise CheckpointError(
            f"{source} must hold ImageReward's weights under their official names; "
            f"{prefix}{missing[0]} is missing."
        )
    return own


def _layers(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Returns the number of layers: one more than the largest number in a name."""
    found = (re.match(pattern, name) for name in tensors)
    return 1 + max((int(match.group(1)) for match in found if match), default=0)
