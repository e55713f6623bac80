"""Pictures per second and memory of the judges, at the sizes of the released weights.

    python examples/benchmarks/judge_throughput.py --output judges.json
    python examples/benchmarks/judge_throughput.py --only clip,hpsv3 --pictures 64
    python examples/benchmarks/judge_throughput.py --tiny    # a trial run, in a minute on a CPU

The weights are random, which changes neither time nor memory. Replies of `unifiedreward` have 90
tokens here and those of `visualquality-r1` 10, their usual lengths; `soft-tifa` asks about two
atoms of each prompt. Pictures are prepared as in a run; a row with "prepare" is the time of that
alone, one after the other. Of every judge the second call is timed. `openai` depends on its
endpoint, and `ocr` runs on the CPU (see `ocr_judge.py`).
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from random_judges import (
    SIZES,
    engine,
    write_clip,
    write_detector,
    write_head,
    write_imagereward,
)
from safetensors.torch import save_file

from tts_verifier.errors import TTSError
from tts_verifier.log.environment import environment
from tts_verifier.verifiers.contrastive.aesthetic import Aesthetic
from tts_verifier.verifiers.contrastive.clip import ClipScore, PickScore
from tts_verifier.verifiers.contrastive.hpsv2 import HPSv2, resize_and_pad
from tts_verifier.verifiers.contrastive.imagereward import ImageReward, resize_and_crop
from tts_verifier.verifiers.rules.detector import DetectorVerifier
from tts_verifier.verifiers.vision_language.hpsv3 import HPSv3
from tts_verifier.verifiers.vision_language.inference.engine import QuestionEngine
from tts_verifier.verifiers.vision_language.soft_tifa import SoftTIFA
from tts_verifier.verifiers.vision_language.unifiedreward import UnifiedReward, VisualQuality
from tts_verifier.verifiers.vision_language.vqascore import VQAScore

Row = dict[str, Any]
PROMPTS = {
    "detector": "a photo of a dog",
    # Two questions by the rules that split a prompt.
    "soft-tifa": "a red fox asleep under a blue umbrella, three children with a sledge",
}
PROMPT = "a red fox in the snow"
LONG_PROMPT = (
    "a red fox asleep under a blue umbrella in the snow while three children build a snowman "
    "behind it and a dog in a coat looks on"
)
ON_ENGINES: dict[str, dict[str, Callable[[QuestionEngine], Any]]] = {
    "Qwen2.5-VL-3B": {"vqascore": VQAScore},
    "Qwen2.5-VL-7B": {
        "vqascore": VQAScore,
        "unifiedreward": lambda e: UnifiedReward(e, max_new_tokens=90),
        "visualquality-r1": lambda e: VisualQuality(e, max_new_tokens=10),
    },
    "Qwen3-VL-8B": {"soft-tifa": SoftTIFA},
    "Qwen2-VL-7B": {"hpsv3": HPSv3},
}
"""Model -> judge -> how it is made from the model's engine."""
CONTRASTIVE = ("clip", "aesthetic", "pickscore", "hpsv2", "imagereward")
JUDGES = (*dict.fromkeys(name for judges in ON_ENGINES.values() for name in judges),
          *CONTRASTIVE, "detector")  # fmt: skip


def measure(judge: Any, pictures: list[Image.Image], prompt: str, first: int) -> Row:
    """Returns pictures per second of a call after a first one, and the peak of the GPU's memory.

    Args:
        judge: the judge.
        pictures: of the call that is timed.
        prompt: of every picture.
        first: how many pictures the first call gets.
    """
    gpu = str(judge.device).startswith("cuda")
    judge.verify(pictures[:first], [prompt] * len(pictures[:first]))
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    verdicts = judge.verify(pictures, [prompt] * len(pictures))
    seconds = time.perf_counter() - start
    assert len(verdicts) == len(pictures)
    return {
        "pictures": len(pictures),
        "pictures_per_second": round(len(pictures) / seconds, 2),
        "weights_gib": round(judge.nbytes / 2**30, 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else None,
    }


def on_engines(options: argparse.Namespace, pictures: list[Image.Image]) -> Iterator[Row]:
    """Yields a row for each judge that asks a vision-language model."""
    for model, judges in ON_ENGINES.items():
        wanted = {name: make for name, make in judges.items() if name in options.only}
        if not wanted:
            continue
        began = time.perf_counter()
        size = options.batch_size
        asked = engine(model, options.device, tiny=options.tiny, batch_size=size)
        made = round(time.perf_counter() - began, 1)
        for name, make in wanted.items():
            # What writes its scores takes ten times as long as what reads one token.
            some = pictures[: max(len(pictures) // 4, 4)] if len(judges) > 1 else pictures
            some = pictures if name == "vqascore" else some
            row = measure(make(asked), some, PROMPTS.get(name, LONG_PROMPT), asked.limit)
            dtype = str(asked.model.dtype).removeprefix("torch.")
            about = {"judge": name, "model": model, "dtype": dtype, "batch_size": asked.limit}
            yield about | row | {"seconds_to_make": made}
        del asked, make
        release()


def on_networks(
    options: argparse.Namespace, pictures: list[Image.Image], root: Path
) -> Iterator[Row]:
    """Yields a row for each contrastive judge and the detector, in each dtype."""
    tiny = options.tiny
    sizes = ("tiny", "tiny") if tiny else ("ViT-L/14", "ViT-H/14")
    head = root / "head.safetensors"
    # A GPU makes a billion random numbers sooner.
    with torch.device(options.device):
        large, huge = (write_clip(root / f"clip{i}", size) for i, size in enumerate(sizes))
        reward, words = write_imagereward(root / "reward", tiny=tiny)
        detector = write_detector(root / "detector", tiny=tiny)
        save_file(write_head({}, "", SIZES[sizes[0]][2]), head)
    judges: dict[str, Callable[[dict[str, Any]], Any]] = {
        "clip": lambda o: ClipScore(large, **o),
        "aesthetic": lambda o: Aesthetic(large, head=head, **o),
        "pickscore": lambda o: PickScore(huge, **o),
        "hpsv2": lambda o: HPSv2(huge, base=huge, **o),
        "imagereward": lambda o: ImageReward(reward, tokenizer=words, **o),
        "detector": lambda o: DetectorVerifier(detector, **o),
    }
    for dtype in options.dtypes:
        for name in judges:
            if name in options.only:
                given = {"device": options.device, "dtype": dtype}
                try:
                    judge = judges[name](given)
                except TTSError as error:  # such as a processor that needs torchvision
                    yield {"judge": name, "dtype": dtype, "error": str(error)}
                    continue
                row = measure(judge, pictures, PROMPTS.get(name, PROMPT), 64)
                del judge
                release()
                yield {"judge": name, "dtype": dtype, **row}


def release() -> None:
    """Returns unused memory to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def preparing(pictures: list[Image.Image]) -> Iterator[Row]:
    """Yields how many pictures a second one thread resizes."""
    for name, prepare in (("resize_and_pad", resize_and_pad), ("resize_and_crop", resize_and_crop)):
        start = time.perf_counter()
        for picture in pictures[:8]:
            prepare(picture, 224)
        rate = 8 / (time.perf_counter() - start)
        yield {"prepare": name, "pictures_per_second": round(rate, 1)}


def every_row(options: argparse.Namespace) -> Iterator[Row]:
    """Yields all rows."""
    noise = np.random.default_rng(0).integers(0, 256, (options.side, options.side, 3), np.uint8)
    pictures = [Image.fromarray(np.roll(noise, i, axis=0)) for i in range(options.pictures)]
    yield from preparing(pictures)
    yield from on_engines(options, pictures)
    if {*CONTRASTIVE, "detector"} & {*options.only}:
        with tempfile.TemporaryDirectory() as folder:
            yield from on_networks(options, pictures, Path(folder))


def main() -> None:
    """Prints a row for each judge, and writes all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a few thousand weights, 8 pictures")
    parser.add_argument("--only", default=",".join(JUDGES), help=f"some of {', '.join(JUDGES)}")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--side", type=int, default=1024, help="of a picture, in pixels")
    parser.add_argument("--batch-size", type=int, help="of vision-language models")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(JUDGES):
        parser.error(f"--only takes {', '.join(JUDGES)}, not {', '.join(sorted(unknown))}")
    if options.tiny:
        options.pictures, options.side = min(options.pictures, 8), min(options.side, 112)
    rows = []
    for row in every_row(options):
        rows.append(row)
        print(json.dumps(row), flush=True)
        if options.output:
            about = {"environment": environment(), "side": options.side, "rows": rows}
            options.output.write_text(json.dumps(about, indent=1, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
