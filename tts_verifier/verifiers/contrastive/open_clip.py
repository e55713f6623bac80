"""The names of open_clip's weights, and what `CLIPModel` of transformers calls them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from torch import Tensor

from tts_verifier.errors import CheckpointError

_LAYER = r"transformer\.resblocks\.(\d+)"
_RENAMED: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
        (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
        (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
        (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
        (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
        (rf"^visual\.{_LAYER}\.", r"vision_model.encoder.layers.\1."),
        (r"^visual\.proj$", "visual_projection.weight"),
        (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
        (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
        (rf"^{_LAYER}\.", r"text_model.encoder.layers.\1."),
        (r"^ln_final\.", "text_model.final_layer_norm."),
        (r"^text_projection$", "text_projection.weight"),
        (r"\.ln_([12])\.", r".layer_norm\1."),
        (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    )
)
_TRANSPOSED: Final = ("visual.proj", "text_projection")
_JOINT: Final = re.compile(r"\.attn\.in_proj_(weight|bias)$")


def transformers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns an open_clip's weights under the names of `CLIPModel`, joint projections split.

    Raises:
        CheckpointError: they are not those of a CLIP of open_clip.
    """
    # As torch's wrapper for several GPUs writes them.
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if missing := [name for name in _TRANSPOSED if name not in tensors]:
        raise CheckpointError(
            f"The weights must be those of a CLIP of open_clip; {', '.join(missing)} is missing."
        )
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        renamed = name
        for pattern, replacement in _RENAMED:
            renamed = pattern.sub(replacement, renamed)
        if joint := _JOINT.search(renamed):
            stem = renamed[: joint.start()]
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{stem}.self_attn.{letter}_proj.{joint.group(1)}"] = part
        else:
            found[renamed] = tensor.T if name in _TRANSPOSED else tensor
    return found
