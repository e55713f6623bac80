"""How many pictures a second VQAScore judges, on a random Qwen2.5-VL of the released 3 B size.

    python examples/benchmarks/vqascore.py --device cuda --output FILE.json
    python examples/benchmarks/vqascore.py --parts --pictures 256 --batch-sizes 32
    python examples/benchmarks/vqascore.py --tiny --parts --pictures 8       # a dry run on a CPU

The weights are random, so the scores mean nothing; the work is that of the released checkpoint. A
token is a byte here, so prompts are cut to the number of tokens that the released tokenizer makes
of the question. It also checks that a batch equals one picture at a time, and how long the host
takes to prepare the pictures. With `--parts` it times what a batch consists of, with our kernels
and with transformers'.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from random_judges import made_on
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parents[1]))
import make_checkpoint

from tts_verifier.log.environment import environment
from tts_verifier.verifiers.vision_language.inference.engine import Question, QuestionEngine
from tts_verifier.verifiers.vision_language.inference.processor import load_processor
from tts_verifier.verifiers.vision_language.inference.qwen import can_read, first_scores
from tts_verifier.verifiers.vision_language.inference.replies import answer_probabilities
from tts_verifier.verifiers.vision_language.vqascore import VQAScore

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>{% endfor %}<|im_start|>"
)
TEXT_TOKENS = 60
"""Of a prompt of some 25 words, with the template's system message and the question."""


def config(tiny: bool) -> Qwen2_5_VLConfig:
    """The released 3 B, or a few thousand weights."""
    raw = make_checkpoint.config("tiny" if tiny else "3b")
    ids = {name: raw[name] for name in raw if name.endswith("_token_id")}
    ids = {name: ids[name] for name in ("image_token_id", "video_token_id")}
    text: dict[str, Any] = {
        "hidden_size": 64 if tiny else 2048,
        "intermediate_size": 96 if tiny else 11008,
        "num_hidden_layers": 2 if tiny else 36,
        "num_attention_heads": 4 if tiny else 16,
        "num_key_value_heads": 2,
        "vocab_size": 320 if tiny else 151936,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [2, 3, 3] if tiny else [16, 24, 24],
            "rope_theta": 1e6,
        },
        "bos_token_id": None,
        "eos_token_id": raw["eos_token_id"],
        "pad_token_id": raw["bos_token_id"],
    }
    vision: dict[str, Any] = {
        "depth": 2 if tiny else 32,
        "hidden_size": 32 if tiny else 1280,
        "intermediate_size": 48 if tiny else 3420,
        "num_heads": 2 if tiny else 16,
        "out_hidden_size": text["hidden_size"],
        "fullatt_block_indexes": [1] if tiny else [7, 15, 23, 31],
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)


def judge(device: str, tiny: bool, batch_size: int | None) -> VQAScore:
    """A random model with a tokenizer of bytes."""
    raw = make_checkpoint.config("tiny" if tiny else "3b")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.json").write_text(make_checkpoint.tokenizer(raw), encoding="utf-8")
        special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        settings = {"tokenizer_class": "Qwen2Tokenizer", "chat_template": TEMPLATE, **special}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        sizes = {"shortest_edge": 56 * 56, "longest_edge": 16384 * 28 * 28}
        pixels = {"image_processor_type": "Qwen2VLImageProcessor", "size": sizes, "patch_size": 14}
        (folder / "preprocessor_config.json").write_text(json.dumps(pixels), encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(config(tiny).to_dict()), encoding="utf-8")
        processor = load_processor(folder, "qwen2_5_vl")
    with made_on(device):
        model = Qwen2_5_VLForConditionalGeneration(config(tiny)).eval().requires_grad_(False)
    return VQAScore(QuestionEngine(model, processor, batch_size=batch_size), answer="Y")


def pictures(count: int, side: int) -> list[Image.Image]:
    """Smooth noise; a processor takes as long for it as for a photograph."""
    made = []
    for seed in range(count):
        small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        made.append(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))
    return made


def seconds_of(work: Callable[[], Any], gpu: bool, repeats: int) -> float:
    """The shortest time of some calls after a first one."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


@torch.inference_mode()
def parts(args: argparse.Namespace, made: VQAScore, batch_size: int) -> list[dict[str, Any]]:
    """Rows: seconds of each part of one batch, and pictures a second of it."""
    engine, model = made.engine, made.engine.model
    gpu = args.device.startswith("cuda")
    images = pictures(batch_size, args.side)
    texts = [made.question.replace("{}", prompt) for prompt in prompts_for(made, batch_size)]
    questions = [Question(i, t, (5,)) for i, t in zip(images, texts, strict=True)]
    turns = [
        engine.processor.apply_chat_template(q.turn, tokenize=False, add_generation_prompt=True)
        for q in questions
    ]

    def prepare() -> Any:
        given = {"text": turns, "images": [[image] for image in images]}
        return engine.processor(**given, padding=True, return_tensors="pt").to(model.dtype)

    inputs = prepare()
    there = engine.upload(inputs)
    grid = there["image_grid_thw"]
    pixels, tower = there["pixel_values"], model.model.visual
    patches = pixels.view(-1, 3, 2, 14, 14)
    states = model.get_input_embeddings()(there["input_ids"])
    kernel = tower.patch_embed.proj
    timed = {
        "processor": prepare,
        "upload": lambda: engine.upload(inputs),
        "patches, convolution": lambda: kernel(patches),
        "patches, product": lambda: pixels @ kernel.weight.flatten(1).t(),
        "vision, transformers": lambda: tower(pixels, grid_thw=grid),
        "language, transformers": lambda: model.model.language_model(
            inputs_embeds=states, use_cache=False
        ),
        "generate, transformers": lambda: model.generate(**there, max_new_tokens=1),
        "host's launches, ours": None,
        "all on the GPU, ours": lambda: first_scores(model, inputs),
        "batch, ours": lambda: answer_probabilities(engine, questions),
    }
    rows = []
    for part, work in timed.items():
        if work is not None:
            seconds = seconds_of(work, gpu, args.repeats)
        else:
            # Without waiting for the GPU: what keeps the host from running ahead.
            first_scores(model, inputs)
            if gpu:
                torch.cuda.synchronize()
            began = time.perf_counter()
            first_scores(model, inputs)
            seconds = time.perf_counter() - began
        rate = round(batch_size / seconds, 1)
        rows.append({"part": part, "seconds": round(seconds, 4), "pictures_per_second": rate})
        print(json.dumps(rows[-1]), flush=True)
    rows.append(
        {"part": "tokens", "shape": list(there["input_ids"].shape), "ours": can_read(model)}
    )
    print(json.dumps(rows[-1]), flush=True)
    return rows


def prompts_for(made: VQAScore, count: int) -> list[str]:
    empty = len(made.engine.processor.tokenizer.encode(made.question.replace("{}", "")))
    return [("a fox " * 20)[: max(TEXT_TOKENS - empty, 1)]] * count


def measured(args: argparse.Namespace, batch_size: int) -> dict[str, Any]:
    """One row: pictures a second with a batch size."""
    made = judge(args.device, args.tiny, batch_size)
    engine = made.engine
    images = pictures(args.pictures, args.side)
    prompts = prompts_for(made, len(images))
    together = made.verify(images[: 2 * batch_size], prompts[: 2 * batch_size])
    alone = made.verify(images[:1], prompts[:1])[0].scores["vqascore"]
    times = []
    for _ in range(args.repeats):
        began = time.perf_counter()
        made.verify(images, prompts)
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    for image in images[:8]:
        engine.processor.image_processor([image], return_tensors="pt")
    host = (time.perf_counter() - began) / len(images[:8])
    gpu = args.device.startswith("cuda")
    return {
        "batch_size": batch_size,
        "pictures": len(images),
        "side": args.side,
        "pictures_per_second": len(images) / min(times),
        "seconds": times,
        "host_seconds_per_picture": host,
        "difference_to_alone": abs(together[0].scores["vqascore"] - alone),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
    }


def main() -> None:
    """Prints a row for each batch size, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a few thousand weights")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--side", type=int, default=512, help="of a picture, in pixels")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--parts", action="store_true", help="time the parts of a batch too")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = []
    for batch_size in args.batch_sizes:
        rows.append(measured(args, batch_size))
        print(json.dumps(rows[-1]), flush=True)
        if args.parts:
            rows += parts(args, judge(args.device, args.tiny, batch_size), batch_size)
    if args.output:
        about = {"environment": environment(), "rows": rows}
        args.output.write_text(json.dumps(about, indent=1, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
