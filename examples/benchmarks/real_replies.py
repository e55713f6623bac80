"""Times replies of natural lengths: our engine, which refills sequences, and batched `generate`.

    python examples/benchmarks/real_replies.py --out replies.parquet

The bundled verifier diagnoses images of the miniature world, every second one with another's
caption, and each reply ends by itself. `generate` takes the same prompts in batches, longest
prompts first as the engine does, and continues until a batch's longest reply has ended. Both use
the same weights and tokens, and decode no heatmaps. The output says how many replies are equal.

Each round runs every way once, and a speed-up is the median over the rounds, so that a machine
that is slow for a while is slow for all. With `--threads 1` the speed-up by processor time stays
meaningful while others use the cores; threads that wait for each other spend it on waiting.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from verifier_bench import write
from verifier_throughput import stock

from tts_verifier import Verifier, shapes
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine
from tts_verifier.verifiers.imagedoctor.model.vision import Grid
from tts_verifier.verifiers.imagedoctor.requests import GenerationRequest


def diagnoses(checkpoint: Checkpoint, count: int) -> list[GenerationRequest]:
    """Returns requests for diagnoses, longest prompts first."""
    captions = shapes.captions(count, seed=7, split="held_out")
    requests = []
    for i, caption in enumerate(captions):
        shown = captions[(i + i % 2) % count]
        patches = checkpoint.processor(shapes.render(shown, seed=i))
        ids = checkpoint.tokenizer.encode_conversation(
            caption, image_tokens=checkpoint.processor.merged_tokens, reasoning=True
        )
        requests.append(GenerationRequest(ids, patches.values, patches.grid))
    return sorted(requests, key=lambda request: -len(request.ids))


def with_engine(
    checkpoint: Checkpoint, requests: list[GenerationRequest], sequences: int
) -> Callable[[], list[list[int]]]:
    """Returns a function that generates all replies with our engine."""
    ours = Engine(checkpoint.model, checkpoint.limits, sequences=sequences)

    def generate_all() -> list[list[int]]:
        replies = {number: reply.ids for number, reply in ours.replies(requests)}
        return [replies[i] for i in range(len(requests))]

    return generate_all


def with_generate(
    checkpoint: Checkpoint, requests: list[GenerationRequest], sequences: int, cache: str | None
) -> Callable[[], list[list[int]]]:
    """Returns a function that generates all replies with transformers."""
    built = stock(checkpoint.model)
    limits, device = checkpoint.limits, checkpoint.model.lm_head.weight.device
    config = GenerationConfig(
        max_new_tokens=limits.max_new_tokens,
        do_sample=False,
        repetition_penalty=limits.penalty,
        eos_token_id=list(limits.eos),
        pad_token_id=0,
        cache_implementation=cache,
    )

    def batch(part: list[GenerationRequest]) -> list[list[int]]:
        longest = max(len(request.ids) for request in part)
        padding = [longest - len(request.ids) for request in part]
        ids = [[0] * n + list(r.ids) for n, r in zip(padding, part, strict=True)]
        batch_ids = torch.tensor(ids, device=device)
        real = torch.tensor([[0] * n + [1] * (longest - n) for n in padding], device=device)
        grids: list[Grid] = [request.grid for request in part]
        pixels = torch.cat([torch.from_numpy(request.patches) for request in part])
        with torch.inference_mode():
            out: Any = built.generate(
                input_ids=batch_ids,
                attention_mask=real,
                pixel_values=pixels.to(device, checkpoint.model.lm_head.weight.dtype),
                image_grid_thw=torch.tensor([[1, *grid] for grid in grids], device=device),
                mm_token_type_ids=(batch_ids == checkpoint.model.config.image_token_id).int(),
                generation_config=config,
            )
        return [before_eos(row, limits.eos) for row in out[:, longest:].tolist()]

    return lambda: [
        reply
        for i in range(0, len(requests), sequences)
        for reply in batch(requests[i : i + sequences])
    ]


def before_eos(ids: list[int], eos: tuple[int, ...]) -> list[int]:
    """Returns the ids before the end token."""
    return ids[: next((i for i, token in enumerate(ids) if token in eos), len(ids))]


def median_ratio(seconds: list[float], of_ours: list[float]) -> float:
    """Returns the median over the rounds of how many times as long as ours a way took."""
    return statistics.median(a / b for a, b in zip(seconds, of_ours, strict=True))


def main() -> None:
    """Runs engine and `generate` in turns, and prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=16, help="replies generated at a time")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch on a CPU; default: torch's own")
    parser.add_argument("--caches", default="dynamic,static", help="of generate, in order")
    parser.add_argument("--out", type=Path, help="a Parquet file")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    checkpoint = Verifier.from_pretrained("shapes").checkpoint
    requests = diagnoses(checkpoint, args.pictures)
    ways = {
        "ours": with_engine(checkpoint, requests, args.sequences),
    }
    for cache in args.caches.split(","):
        implementation = None if cache == "dynamic" else cache
        way = with_generate(checkpoint, requests, args.sequences, implementation)
        ways[f"generate, {cache} cache"] = way
    seconds_of: dict[str, list[float]] = {name: [] for name in ways}
    cpu_of: dict[str, list[float]] = {name: [] for name in ways}
    replies_of = {}
    for run in range(args.runs + 1):  # the first warms up
        for name, way in ways.items():
            began, cpu_began = time.perf_counter(), time.process_time()
            replies_of[name] = way()
            if run:
                seconds_of[name].append(time.perf_counter() - began)
                cpu_of[name].append(time.process_time() - cpu_began)
    lengths = [len(reply) for reply in replies_of["ours"]]
    cuda = checkpoint.model.lm_head.weight.is_cuda
    on = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    rows = []
    for name in ways:
        seconds = statistics.median(seconds_of[name])
        equal = sum(a == b for a, b in zip(replies_of[name], replies_of["ours"], strict=True))
        rows.append(
            {
                "part": name,
                "on": on,
                "images_per_s": args.pictures / seconds,
                "ours_is_times": median_ratio(seconds_of[name], seconds_of["ours"]),
                "cpu_s": statistics.median(cpu_of[name]),
                "ours_is_times_by_cpu": median_ratio(cpu_of[name], cpu_of["ours"]),
                "fastest_s": min(seconds_of[name]),
                "slowest_s": max(seconds_of[name]),
                "same_replies": equal / args.pictures,
                "shortest_reply": min(lengths),
                "longest_reply": max(lengths),
            }
        )
        print(json.dumps(rows[-1]))
    if args.out:
        write(rows, args.out)


if __name__ == "__main__":
    main()
