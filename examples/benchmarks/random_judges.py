"""Judges of random weights at the sizes of the released ones. Nothing is downloaded.

Contrastive judges and the detector read a folder, as they do with released weights. Vision-language
models are made directly on their device. Their tokenizer knows the words of the instructions, so
that an instruction has about as many tokens as with the released one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tts_verifier.verifiers.vision_language.inference.engine import QuestionEngine
from tts_verifier.verifiers.vision_language.inference.processor import load_processor
from tts_verifier.verifiers.vision_language.instructions import (
    ANSWER_ALONE,
    HPSV3,
    UNIFIED_REWARD,
    VISUAL_QUALITY,
)
from tts_verifier.verifiers.vision_language.reward_model import REWARD_TOKEN, RewardModel

# (layers, width, heads, inner width) of the vision and the text tower, and of the shared space.
SIZES = {
    "ViT-L/14": ((24, 1024, 16, 4096), (12, 768, 12, 3072), 768),
    "ViT-H/14": ((32, 1280, 16, 5120), (24, 1024, 16, 4096), 1024),
    "tiny": ((2, 64, 2, 128), (2, 64, 2, 128), 32),
}


def random(*shape: int) -> torch.Tensor:
    return 0.02 * torch.randn(*shape)


def write_clip(folder: Path, size: str) -> Path:
    """Writes a CLIP of random weights, with a vocabulary of the usual number of tokens."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    *towers, shared = SIZES[size]
    vision, text = (dict(zip(names, tower, strict=True)) for tower in towers)
    text |= {"eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407}
    vision |= {"image_size": 224, "patch_size": 14}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=shared)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    letters = [chr(c) + end for c in range(33, 127) for end in ("", "</w>")]
    words = [*letters, *(f"filler{i}</w>" for i in range(49406 - len(letters)))]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def write_imagereward(folder: Path, *, tiny: bool) -> tuple[Path, Path]:
    """Writes ImageReward's weights, random ones under their official names, and a tokenizer."""
    depth, width, layers, hidden, vocabulary = (
        (2, 128, 2, 128, 200) if tiny else (24, 1024, 12, 768, 30524)
    )
    folder.mkdir()
    found: dict[str, torch.Tensor] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        found.update({f"{name}.weight": random(outputs, inputs), f"{name}.bias": random(outputs)})

    def norm(name: str, size: int) -> None:
        found.update({f"{name}.weight": torch.ones(size), f"{name}.bias": torch.zeros(size)})

    image, text = "blip.visual_encoder.", "blip.text_encoder."
    found[f"{image}cls_token"], found[f"{image}pos_embed"] = (random(1, n, width) for n in (1, 197))
    found[f"{image}patch_embed.proj.weight"] = random(width, 3, 16, 16)
    found[f"{image}patch_embed.proj.bias"] = random(width)
    norm(f"{image}norm", width)
    for i in range(depth):
        block = f"{image}blocks.{i}."
        norm(f"{block}norm1", width)
        norm(f"{block}norm2", width)
        linear(f"{block}attn.qkv", 3 * width, width)
        linear(f"{block}attn.proj", width, width)
        linear(f"{block}mlp.fc1", 4 * width, width)
        linear(f"{block}mlp.fc2", width, 4 * width)
    for name, rows in (("word", vocabulary), ("position", 512)):
        found[f"{text}embeddings.{name}_embeddings.weight"] = random(rows, hidden)
    norm(f"{text}embeddings.LayerNorm", hidden)
    for i in range(layers):
        for part, inputs in (("attention", hidden), ("crossattention", width)):
            layer = f"{text}encoder.layer.{i}.{part}."
            linear(f"{layer}self.query", hidden, hidden)
            linear(f"{layer}self.key", hidden, inputs)
            linear(f"{layer}self.value", hidden, inputs)
            linear(f"{layer}output.dense", hidden, hidden)
            norm(f"{layer}output.LayerNorm", hidden)
        layer = f"{text}encoder.layer.{i}."
        linear(f"{layer}intermediate.dense", 4 * hidden, hidden)
        linear(f"{layer}output.dense", hidden, 4 * hidden)
        norm(f"{layer}output.LayerNorm", hidden)
    write_head(found, "mlp.", hidden)
    save_file(found, folder / "ImageReward.safetensors")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [f"{mark}{chr(c)}" for c in range(97, 123) for mark in ("", "##")]
    words = special + letters
    words += [f"filler{i}" for i in range(vocabulary - 2 - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder, folder


def write_head(found: dict[str, torch.Tensor], prefix: str, width: int) -> dict[str, torch.Tensor]:
    sizes = (width, 1024, 128, 64, 16, 1)
    for place, inputs, outputs in zip((0, 2, 4, 6, 7), sizes[:-1], sizes[1:], strict=True):
        found[f"{prefix}layers.{place}.weight"] = random(outputs, inputs)
        found[f"{prefix}layers.{place}.bias"] = random(outputs)
    return found


def write_detector(folder: Path, *, tiny: bool) -> Path:
    """Writes an RT-DETR R50 of random weights."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessorPil

    labels = ["dog", *(f"class {i}" for i in range(1, 80))]
    sizes: dict[str, Any] = {"decoder_layers": 1, "num_queries": 20} if tiny else {}
    names = {"id2label": dict(enumerate(labels)), "label2id": {k: i for i, k in enumerate(labels)}}
    RTDetrForObjectDetection(RTDetrConfig(**names, **sizes)).save_pretrained(folder)
    size = {"size": {"height": 64, "width": 64}} if tiny else {}
    RTDetrImageProcessorPil(**size).save_pretrained(folder)
    return folder


# -- vision-language models ----------------------------------------------------------------

SPECIAL = {
    "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>",
    "image": "<|image_pad|>", "video": "<|video_pad|>",
}  # fmt: skip
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
# (family, width, inner width, layers, heads, key and value heads, size of the vocabulary, tied).
LANGUAGE: dict[str, tuple[str, int, int, int, int, int, int, bool]] = {
    "Qwen2.5-VL-3B": ("qwen2_5_vl", 2048, 11008, 36, 16, 2, 151936, True),
    "Qwen2.5-VL-7B": ("qwen2_5_vl", 3584, 18944, 28, 28, 4, 152064, False),
    "Qwen2-VL-7B": ("qwen2_vl", 3584, 18944, 28, 28, 4, 152064, False),
    "Qwen3-VL-8B": ("qwen3_vl", 4096, 12288, 36, 32, 8, 151936, False),
}
"""The text models of the released config files."""


@contextmanager
def made_on(device: str) -> Iterator[None]:
    """Makes the weights of new modules on a device: bfloat16 on a GPU, float32 elsewhere."""
    torch.set_default_dtype(torch.bfloat16 if device.startswith("cuda") else torch.float32)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def word_tokenizer(size: int) -> Any:
    """Returns a tokenizer that knows the words of the instructions, and digits one by one."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    splits = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    texts = " ".join((UNIFIED_REWARD, VISUAL_QUALITY, ANSWER_ALONE, HPSV3, "0123456789 Yes No yes"))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *SPECIAL.values()]
    words = ["[UNK]", *dict.fromkeys(word for word, _ in splits.pre_tokenize_str(texts))]
    # The last one is left for HPSv3's reward token.
    words += [f"filler{i}" for i in range(size - 1 - len(special) - len(words))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = splits
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="[UNK]",
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def config_of(name: str, tokenizer: Any, *, tiny: bool) -> Any:
    """Returns the config of a model of `LANGUAGE`, or one of its family with a few thousand
    weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig

    family, width, inner, layers, heads, pairs, vocabulary, tied = LANGUAGE[name]
    if tiny:
        width, inner, layers, heads, pairs, vocabulary = 64, 96, 2, 4, 2, len(tokenizer) + 1
    text = {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": pairs, "vocab_size": vocabulary,
        "max_position_embeddings": 32768, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6,
            "mrope_section": [2, 3, 3] if tiny else [16, 24, 24],
        },
    }  # fmt: skip
    ids = {f"{k}_token_id": tokenizer.convert_tokens_to_ids(v) for k, v in SPECIAL.items()}
    ids["tie_word_embeddings"] = tied
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2} if tiny else {"num_heads": 16}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "mlp_ratio": 2} if tiny else {"depth": 32, "embed_dim": 1280}
        vision |= {"hidden_size": width}
        return Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    sizes = (32, 48) if tiny else (1280, 3420) if family == "qwen2_5_vl" else (1152, 4304)
    vision |= dict(zip(("hidden_size", "intermediate_size"), sizes, strict=True))
    vision["out_hidden_size"] = width
    if family == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [1]} if tiny else {"depth": 32}
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    text |= {"head_dim": 16 if tiny else 128, "rope_parameters": {
        **text["rope_parameters"], "mrope_section": [2, 3, 3] if tiny else [24, 20, 20],
        "mrope_interleaved": True, "rope_theta": 5e6,
    }}  # fmt: skip
    vision |= {"deepstack_visual_indexes": [0 if tiny else 8, *(() if tiny else (16, 24))]}
    vision |= {"num_position_embeddings": 2304, **({} if tiny else {"depth": 27})}
    return Qwen3VLConfig(text_config=text, vision_config=vision, **ids)


def engine(name: str, device: str, *, tiny: bool, batch_size: int | None) -> QuestionEngine:
    """Returns a random model of `LANGUAGE` on a device; Qwen2-VL becomes HPSv3's network."""
    import transformers

    tokenizer = word_tokenizer(2000 if tiny else 151_669)
    config = config_of(name, tokenizer, tiny=tiny)
    family = config.model_type
    with tempfile.TemporaryDirectory() as folder:
        size = {"shortest_edge": 56 * 56, "longest_edge": 16384 * 28 * 28}
        pixels = {"image_processor_type": "Qwen2VLImageProcessor", "size": size}
        pixels["patch_size"] = 16 if family == "qwen3_vl" else 14
        tokenizer.save_pretrained(folder)
        Path(folder, "preprocessor_config.json").write_text(json.dumps(pixels), "utf-8")
        Path(folder, "config.json").write_text(json.dumps(config.to_dict()), "utf-8")
        processor = load_processor(Path(folder), family)
    if family == "qwen2_vl":
        processor.tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
        processor.image_processor.size = dict.fromkeys(size, 256 * 28 * 28)
        with made_on(device):
            reward_id = processor.tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
            model: Any = RewardModel(config, reward_id)
        model.rm_head.float()
        probe = HPSV3.replace("{text_prompt}", "?")
    else:
        kinds = {
            "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
            "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
        }
        with made_on(device):
            model = kinds[family](config)
        probe = "?"
    model = model.to(device).eval().requires_grad_(False)
    return QuestionEngine(model, processor, batch_size=batch_size, probe=probe)
