"""Image-text-to-text models of a few thousand random weights, in folders as the hub has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as t
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SPECIAL = {
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava")


def tokenizer(image: str = QWEN_IMAGE) -> t.PreTrainedTokenizerFast:
    """One token for each byte, and for "Yes", "No" and "two"."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for word in ("Yes", "No", "two"):
        for end in range(1, len(word)):
            merges.append((word[:end], word[end]))
            vocabulary.setdefault(word[: end + 1], len(vocabulary))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *SPECIAL.values(), "<image>")
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    made = t.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    made.chat_template = TEMPLATE.replace("IMAGE", image)
    return made


def text_sizes(tokens: t.PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokens), "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 4096, "bos_token_id": None,
        "eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id, **more,
    }  # fmt: skip


def qwen(family: str, tokens: t.PreTrainedTokenizerFast) -> Any:
    """A random Qwen2-VL, Qwen2.5-VL or Qwen3-VL."""
    ids = {f"{k}_token_id": tokens.convert_tokens_to_ids(name) for k, name in SPECIAL.items()}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    text = text_sizes(tokens, rope_parameters=rope)
    vision = {"depth": 2, "num_heads": 2}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
        config = t.Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
        return t.Qwen2VLForConditionalGeneration(config)
    vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
    if family == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [1], "window_size": 56}
        config = t.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        return t.Qwen2_5_VLForConditionalGeneration(config)
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    text |= {"head_dim": 16}
    config = t.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    return t.Qwen3VLForConditionalGeneration(config)


def llava(tokens: t.PreTrainedTokenizerFast) -> Any:
    """A random LLaVA, whose images have four tokens."""
    vision = t.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    text = t.LlamaConfig(**text_sizes(tokens))
    image = tokens.convert_tokens_to_ids("<image>")
    config = t.LlavaConfig(vision_config=vision, text_config=text, image_token_index=image)
    return t.LlavaForConditionalGeneration(config)


def save_judge(folder: Path, family: str = "qwen2_5_vl") -> Path:
    """Writes a random model of a family with its processor, and returns the folder."""
    torch.manual_seed(0)
    if family == "llava":
        tokens = tokenizer("<image>")
        model = llava(tokens)
        pixels = t.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28)
        processor = t.LlavaProcessor(
            pixels, tokens, patch_size=14, vision_feature_select_strategy="default",
            chat_template=tokens.chat_template, num_additional_image_tokens=1,
        )  # fmt: skip
        processor.save_pretrained(folder)
    else:
        tokens = tokenizer()
        model = qwen(family, tokens)
        patch = {"patch_size": 16} if family == "qwen3_vl" else {}
        pixels = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=112 * 112, **patch)
        pixels.save_pretrained(folder)
        tokens.save_pretrained(folder)
    # Random weights of the usual size answer everything alike.
    for weight in model.parameters():
        weight.data *= 4 if weight.ndim > 1 else 1
    model.save_pretrained(folder)
    return folder
