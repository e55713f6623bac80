"""Replies of their natural lengths: the engine, which refills rows, beside batched `generate`.

    python examples/benchmarks/real_replies.py --out replies.parquet

The bundled verifier reads drawings of the miniature world, every second one with another's
caption, and ends each reply where it ends. `generate` takes the same prompts in batches, longest
captions first as the engine does, and writes on until a batch's longest reply has ended. Same
weights, same tokens; no heatmaps on either side. Says how many replies are equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig
from verifier_throughput import stock, write

from tts_verifier import Verifier, shapes
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine
from tts_verifier.verifiers.imagedoctor.generation import GenerationRequest
from tts_verifier.verifiers.imagedoctor.model.vision import Grid


def asked(kept: Checkpoint, count: int) -> list[GenerationRequest]:
    """Returns what a diagnosis asks of pictures, longest first."""
    captions = shapes.captions(count, seed=7, split="held_out")
    made = []
    for i, caption in enumerate(captions):
        shown = captions[(i + i % 2) % count]
        patches = kept.processor(shapes.render(shown, seed=i))
        cells = len(patches.values) // kept.processor.merge_size**2
        ids = kept.tokenizer.encode_conversation(caption, image_tokens=cells, reasoning=True)
        made.append(GenerationRequest(ids, patches.values, patches.grid))
    return sorted(made, key=lambda request: -len(request.ids))


def engine(
    kept: Checkpoint, requests: list[GenerationRequest], rows: int
) -> Callable[[], list[list[int]]]:
    """Returns what writes all replies with ours."""
    ours = Engine(kept.model, kept.limits, slots=rows)

    def write_all() -> list[list[int]]:
        found = {number: reply.ids for number, reply in ours.replies(requests)}
        return [found[i] for i in range(len(requests))]

    return write_all


def generate(
    kept: Checkpoint, requests: list[GenerationRequest], rows: int, cache: str | None
) -> Callable[[], list[list[int]]]:
    """Returns what writes all replies with transformers."""
    built = stock(SimpleNamespace(model=kept.model))
    limits, device = kept.limits, kept.model.lm_head.weight.device
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
        told = torch.tensor(ids, device=device)
        real = torch.tensor([[0] * n + [1] * (longest - n) for n in padding], device=device)
        grids: list[Grid] = [request.grid for request in part]
        pixels = torch.cat([torch.from_numpy(request.patches) for request in part])
        with torch.inference_mode():
            out: Any = built.generate(
                input_ids=told,
                attention_mask=real,
                pixel_values=pixels.to(device, kept.model.lm_head.weight.dtype),
                image_grid_thw=torch.tensor([[1, *grid] for grid in grids], device=device),
                mm_token_type_ids=(told == kept.model.config.image_token_id).int(),
                generation_config=config,
            )
        return [ended(row, limits.eos) for row in out[:, longest:].tolist()]

    return lambda: [
        reply for i in range(0, len(requests), rows) for reply in batch(requests[i : i + rows])
    ]


def ended(ids: list[int], eos: tuple[int, ...]) -> list[int]:
    """Returns the ids before the end token."""
    return ids[: next((i for i, token in enumerate(ids) if token in eos), len(ids))]


def main() -> None:
    """Runs all ways in turns, and prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16, help="replies written at a time")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a Parquet file")
    args = parser.parse_args()
    kept = Verifier.from_pretrained("shapes").checkpoint
    requests = asked(kept, args.pictures)
    ways = {
        "ours": engine(kept, requests, args.rows),
        "generate, dynamic cache": generate(kept, requests, args.rows, None),
        "generate, static cache": generate(kept, requests, args.rows, "static"),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    said = {}
    for turn in range(args.runs + 1):  # the first warms up
        for name, way in ways.items():
            began = time.perf_counter()
            said[name] = way()
            took[name] += [time.perf_counter() - began] if turn else []
    lengths = [len(reply) for reply in said["ours"]]
    cuda = kept.model.lm_head.weight.is_cuda
    on = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    rows = []
    for name in ways:
        seconds = statistics.median(took[name])
        equal = sum(a == b for a, b in zip(said[name], said["ours"], strict=True))
        rows.append(
            {
                "part": name,
                "on": on,
                "images_per_s": args.pictures / seconds,
                "ours_is_times": seconds / statistics.median(took["ours"]),
                "fastest_s": min(took[name]),
                "slowest_s": max(took[name]),
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
