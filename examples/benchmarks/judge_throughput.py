"""Pictures per second and memory of the contrastive judges, at the sizes of the released weights.

    python examples/benchmarks/judge_throughput.py
    python examples/benchmarks/judge_throughput.py --tiny     # a trial run, in seconds on a CPU

The weights are random, which changes neither time nor memory. Pictures of 1024 x 1024 are prepared
as in a run: a row with "prepare" is the time of that alone, one after the other.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from tts_verifier.verifiers.contrastive.aesthetic import Aesthetic
from tts_verifier.verifiers.contrastive.clip import ClipScore, PickScore
from tts_verifier.verifiers.contrastive.hpsv2 import HPSv2, resize_and_pad
from tts_verifier.verifiers.contrastive.imagereward import ImageReward, resize_and_crop

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


def measure(judge: Any, pictures: list[Image.Image]) -> dict[str, float]:
    """Returns pictures per second of the second call, and the peak of the GPU's memory."""
    gpu = judge.device.startswith("cuda")
    prompts = ["a red fox in the snow"] * len(pictures)
    judge.verify(pictures, prompts)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    judge.verify(pictures, prompts)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else float("nan")
    return {"pictures_per_second": round(len(pictures) / seconds, 2), "peak_gib": round(peak, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--pictures", type=int, default=256)
    options = parser.parse_args()
    tiny, count = options.tiny, 8 if options.tiny else options.pictures
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    pictures = [Image.fromarray(np.roll(noise, i, axis=0)) for i in range(count)]
    for name, prepare in (("resize_and_pad", resize_and_pad), ("resize_and_crop", resize_and_crop)):
        start = time.perf_counter()
        for picture in pictures[:8]:
            prepare(picture, 224)
        rate = 8 / (time.perf_counter() - start)
        print(json.dumps({"prepare": name, "pictures_per_second": round(rate, 1)}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        large = write_clip(root / "l", "tiny" if tiny else "ViT-L/14")
        huge = write_clip(root / "h", "tiny" if tiny else "ViT-H/14")
        reward, words = write_imagereward(root / "r", tiny=tiny)
        head = root / "head.safetensors"
        save_file(write_head({}, "", SIZES["tiny" if tiny else "ViT-L/14"][2]), head)
        for dtype in ("float32", "bfloat16"):
            judges = {
                "clip": lambda d: ClipScore(large, dtype=d),
                "aesthetic": lambda d: Aesthetic(large, head=head, dtype=d),
                "pickscore": lambda d: PickScore(huge, dtype=d),
                "hpsv2": lambda d: HPSv2(huge, base=huge, dtype=d),
                "imagereward": lambda d: ImageReward(reward, tokenizer=words, dtype=d),
            }
            for name, make in judges.items():
                judge = make(dtype)
                about = {"judge": name, "dtype": dtype, "device": judge.device}
                about["weights_gib"] = round(judge.nbytes / 2**30, 2)
                print(json.dumps(about | measure(judge, pictures)), flush=True)
                del judge


if __name__ == "__main__":
    main()
