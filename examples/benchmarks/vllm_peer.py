"""Measures vLLM on the verifier's language and vision model: text only, no states, no heatmaps.

    python examples/benchmarks/vllm_peer.py --queues 512,32,1

A process of its own, because vLLM takes the GPU's memory when it starts. bf16, random weights of
the released size, prompts as token ids with a picture of 504 x 504, replies of a fixed length. The
pictures are PIL images, so its figures include its processor, which works beside the engine;
`processor_ms` says how long it takes for an image alone. Each run has new prompts and pictures,
because vLLM keeps what it has read. Prints rows as JSON; `verifier_throughput.py` runs it as a
part.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
import make_checkpoint

from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig

SIDE = 504
RUNS = 3
QUEUES = (512, 32, 1)
NAME = "vllm"
ENGINE = {
    "dtype": "bfloat16",
    "load_format": "dummy",
    "max_model_len": 2048,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 16384,
    "limit_mm_per_prompt": {"image": 1, "video": 0},
    "enable_prefix_caching": False,
    # The verifier's own weights may be on the GPU as well.
    "gpu_memory_utilization": 0.5,
}


def missing() -> str | None:
    """Returns why vLLM cannot run here, as a sentence; None if it can."""
    if find_spec("vllm") is None:
        return "vLLM is not installed here; `pip install vllm` adds it."
    return None


def rows_of_process(*, tokens: int, text: int) -> list[dict[str, Any]]:
    """Runs this file in a process of its own, and returns its rows.

    Raises:
        RuntimeError: it failed; the message has the end of what it printed.
    """
    command = [sys.executable, __file__, "--tokens", str(tokens), "--text", str(text)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith(f'{{"part": "{NAME}')]
    return [json.loads(line) for line in lines]


def write_folder(folder: Path) -> dict[str, Any]:
    """Writes what vLLM needs instead of weights; returns the released config."""
    from transformers import Qwen2_5_VLConfig

    raw = make_checkpoint.config("3b")
    config = ImageDoctorConfig.from_dict(raw)
    text = config.text_config()
    # vLLM asks the language model's own config, too.
    text.tie_word_embeddings = config.tied
    whole = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=config.vision_config(),
        image_token_id=config.image_token_id,
        vision_start_token_id=config.vision_start_token_id,
        tie_word_embeddings=config.tied,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
    )
    whole.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(make_checkpoint.tokenizer(raw), "utf-8")
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2TokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 32768,
        },
        "preprocessor_config.json": {
            "processor_class": "Qwen2_5_VLProcessor",
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": SIDE**2,
            "max_pixels": SIDE**2,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), "utf-8")
    return raw


def prompts(raw: dict[str, Any], count: int, text: int, seed: int) -> list[dict[str, Any]]:
    """Returns prompts with `text` random tokens and a picture each.

    One image token stands for the whole picture; vLLM repeats it for each merged token.
    """
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        words = rng.integers(0, 256, text - 2).tolist()
        image = [raw[f"{name}_token_id"] for name in ("vision_start", "image", "vision_end")]
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        made.append(
            {
                "prompt_token_ids": [*words[:16], *image, *words[16:]],
                "multi_modal_data": {"image": Image.fromarray(pixels)},
            }
        )
    return made


def processor_ms(folder: Path, picture: Image.Image, repeats: int = 20) -> float | None:
    """Returns the milliseconds that the processor takes for an image; None if it cannot be made."""
    try:
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(folder)
        processor(text=["<|image_pad|>"], images=[picture], return_tensors="pt")
        began = time.perf_counter()
        for _ in range(repeats):
            processor(text=["<|image_pad|>"], images=[picture], return_tensors="pt")
    except Exception as error:  # a figure beside the others
        print(f"the processor alone was not timed: {error}", file=sys.stderr)
        return None
    return (time.perf_counter() - began) / repeats * 1e3


def measure(queues: tuple[int, ...], tokens: int, text: int) -> list[dict[str, Any]]:
    """Returns a row for each length of the queue, the median of `RUNS` runs."""
    from vllm import LLM, SamplingParams, __version__

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = write_folder(folder)
        began = time.perf_counter()
        engine = LLM(model=str(folder), **ENGINE)
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        first = prompts(raw, 32, text, seed=0)
        engine.generate(first, params, use_tqdm=False)
        shared = {
            "warm_s": time.perf_counter() - began,
            "processor_ms": processor_ms(folder, first[0]["multi_modal_data"]["image"]),
            "note": f"vLLM {__version__}, text only",
        }
        rows = []
        for count in queues:
            seconds = []
            for run in range(RUNS):
                asked = prompts(raw, count, text, seed=1 + run + RUNS * count)
                began = time.perf_counter()
                outputs = engine.generate(asked, params, use_tqdm=False)
                seconds.append(time.perf_counter() - began)
                lengths = {len(output.outputs[0].token_ids) for output in outputs}
                if len(outputs) != count or lengths != {tokens}:
                    raise RuntimeError(f"{len(outputs)} replies of {lengths} tokens came back.")
            middle = sorted(seconds)[RUNS // 2]
            row = {"part": f"{NAME}, queue of {count}", "images": count, "seconds": middle}
            row |= {"images_per_s": count / middle, "fastest_s": min(seconds)}
            row |= {"slowest_s": max(seconds), "prompt_tokens": len(outputs[0].prompt_token_ids)}
            rows.append(row | shared)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queues", default=",".join(map(str, QUEUES)), help="lengths of the queue")
    parser.add_argument("--tokens", type=int, default=256, help="of each reply")
    parser.add_argument("--text", type=int, default=366, help="text tokens of a prompt")
    args = parser.parse_args()
    if (reason := missing()) is not None:
        sys.exit(f"{NAME} is left out: {reason}")
    for row in measure(tuple(map(int, args.queues.split(","))), args.tokens, args.text):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
