"""Reads prompts into Qwen2.5-VL with the kernels of ImageDoctor, which is the same network.

transformers launches some forty kernels for a layer where these are ten, and asks the GPU for
sizes in between. Here nothing is asked, so the host prepares the next batch meanwhile.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration, RepetitionPenaltyLogitsProcessor

from tts_verifier.verifiers.imagedoctor.engine.layers import (
    AttentionShape,
    FusedModel,
    Rope,
    fuse_model,
    mrope,
    run_layers,
)
from tts_verifier.verifiers.imagedoctor.model import vision
from tts_verifier.verifiers.imagedoctor.model.flash import attend
from tts_verifier.verifiers.imagedoctor.model.mrope import rope_positions
from tts_verifier.verifiers.imagedoctor.ops.pointwise import rotate_heads
from tts_verifier.verifiers.imagedoctor.ops.transfer import to_device

_STOCK: Final = ("torch.nn.modules.", "transformers.activations", "transformers.models.qwen2_5_vl.")
"""Modules of stock classes, which compute nothing beyond their weights."""
_OF_NO_EFFECT: Final = {
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "max_length", "max_new_tokens"),
    *("use_cache", "output_attentions", "output_hidden_states", "transformers_version"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "_from_model_config"),
}
"""Keys of a generation config that do not change the scores of a greedy reply's first token."""


def can_read(model: Any) -> bool:
    """Says whether `first_scores` gives what `generate` of transformers gives.

    It does for a Qwen2.5-VL as released. One with adapters, hooks, quantised layers, weights on
    several devices, long-context positions or further logits processors is left to transformers.
    """
    cls: type = type(model)
    if cls is not Qwen2_5_VLForConditionalGeneration:
        return False
    text, generation = model.config.text_config, model.generation_config.to_diff_dict()
    weights = [weight.detach() for weight in model.parameters()]
    return (
        text.rope_parameters["rope_type"] == "default"
        and getattr(text, "head_dim", None) in (None, text.hidden_size // text.num_attention_heads)
        and text.hidden_act == model.config.vision_config.hidden_act == "silu"
        and set(text.layer_types) == {"full_attention"}
        and not set(generation) - _OF_NO_EFFECT - {"repetition_penalty"}
        and len({(type(w), w.device, w.dtype) for w in weights}) == 1
        and type(weights[0]) is Tensor
        # Weights that were made in inference mode cannot be fused.
        and not weights[0].is_inference()
        and all(map(_is_stock, model.modules()))
    )


def _is_stock(module: nn.Module) -> bool:
    own = {"forward", "_hf_hook"} & vars(module).keys()
    hooks = module._forward_hooks or module._forward_pre_hooks
    return not own and not hooks and type(module).__module__.startswith(_STOCK)


def first_scores(model: Any, inputs: Any) -> Tensor:
    """Returns the scores of a reply's first token, without waiting for a GPU.

    The first call fuses weights: it **re-points `parameter.data` of the model** into larger
    matrices (see `imagedoctor.ops.fused_weights`).

    Args:
        model: one that `can_read` accepts.
        inputs: on the host, from the processor: prompts with one image each, padded on the left.

    Returns:
        (prompts, vocabulary), logits after the repetition penalty of the generation config.
    """
    device = model.device
    ids, real = _padded_on_the_right(inputs["input_ids"], inputs["attention_mask"].bool())
    lengths = real.sum(1)
    ends = to_device(torch.arange(len(ids)) * ids.shape[1] + lengths - 1, device)
    grids = [(int(h), int(w)) for _, h, w in inputs["image_grid_thw"].tolist()]
    ids, real, pixels = (to_device(x, device) for x in (ids, real, inputs["pixel_values"]))
    fused = _fuse(model)
    visual = vision.features(model.model.visual, pixels, grids, fused.vision_blocks)
    positions, _ = rope_positions(
        ids,
        grids,
        image_token=model.config.image_token_id,
        merge=model.config.vision_config.spatial_merge_size,
        mask=real,
    )
    x = model.get_input_embeddings()(ids)
    # A scatter fills places in order, and needs no indices, which the host would wait for.
    x = x.masked_scatter((ids == model.config.image_token_id)[..., None], visual.to(x.dtype))
    causal = _CausalAttention(fused.shape)
    last = run_layers(fused, x, mrope(fused, positions), attend=causal, rows=ends)
    scores: Tensor = model.lm_head(last)
    penalty = model.generation_config.repetition_penalty
    if penalty in (None, 1.0):
        return scores
    penalised: Tensor = RepetitionPenaltyLogitsProcessor(float(penalty))(ids, scores.float())
    return penalised


def _padded_on_the_right(ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Moves padding to the right, where causal attention needs no mask for it.

    Padding repeats each prompt's first token, which is penalised in any case.
    """
    width = ids.shape[1]
    missing = width - real.sum(1, keepdim=True)
    places = torch.arange(width) + missing
    # Past the end there is nothing left: the prompt's first token.
    real = places < width
    return ids.gather(1, torch.where(real, places, missing)), real


def _fuse(model: Any) -> FusedModel:
    """Fuses the weights under ImageDoctor's names."""
    inner = model.model
    config = SimpleNamespace(text=model.config.text_config.to_dict())
    parts = SimpleNamespace(
        visual=inner.visual, model=inner.language_model, lm_head=model.lm_head, config=config
    )
    return fuse_model(cast(Any, parts))


class _CausalAttention:
    """Attention within prompts that are padded on the right; nothing is kept for later tokens."""

    def __init__(self, shape: AttentionShape) -> None:
        self.shape = shape

    def __call__(self, layer: int, qkv: Tensor, rope: Rope) -> Tensor:
        """(N, T, fused) -> (N, T, heads * size); see `layers.Attend`."""
        shape = self.shape
        heads = qkv.flatten(0, 1).unflatten(-1, (-1, shape.size))
        heads = rotate_heads(heads, *rope, shape.rotated).unflatten(0, qkv.shape[:2])
        parts = [shape.heads, shape.kv_heads, shape.kv_heads]
        q, k, v = heads.transpose(1, 2).split(parts, 1)
        out = attend(q, k, v, causal=True)
        return out.transpose(1, 2).flatten(2)
