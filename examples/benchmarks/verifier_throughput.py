"""Measures the verifier's speed beside the official procedure, transformers and the floor.

    python examples/benchmarks/verifier_throughput.py                    # real size, random, GPU
    python examples/benchmarks/verifier_throughput.py --model FOLDER     # a checkpoint, any device
    python examples/benchmarks/verifier_throughput.py --only ours,dynamic --images 32 --tokens 64
    python examples/benchmarks/verifier_throughput.py --only "" --sample # steps that draw tokens
    python examples/benchmarks/verifier_throughput.py --only devices --device cuda:0,1 --images 1024

All parts share weights, prompts, images and the number of reply tokens (end tokens are switched
off). `ours` comes first, because its warm-up then includes everything that a process compiles. It
decodes both maps of every image, because random weights never ask for one. `devices` compares
several GPUs with the first of them. `vllm` runs another program, if it is installed, see
vllm_peer.py. The program prints rows as JSON, and writes them as Parquet with --out.
VERIFIER_THROUGHPUT.md has expectations and results.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import vllm_peer
from random_models import TEXT_TOKENS
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from verifier_bench import Bench, Row, picture, write

from tts_verifier.log.environment import environment
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.requests import (
    ForcedStep,
    GenerationLimits,
    GenerationRequest,
    Sampling,
)

PARTS = ("ours", "score", "queue", "floor", "static", "dynamic", "official", "vllm")
OTHER_WORK = ("score", "queue", "sample", "devices", "vllm")
"""Parts that do another amount of work than the floor's and the other parts'."""
OFFICIAL_IMAGES = 2
SPANS = (14, 6, 14, 0)
"""Forced tokens after each of an answer's four numbers, about, in the official vocabulary."""
SAMPLINGS = {
    "greedy": None,
    "temperature": Sampling(0.9),
    "top-k": Sampling(0.9, 50),
    "top-p": Sampling(0.9, 0, 0.9),
    "top-k, top-p": Sampling(0.9, 50, 0.9),
}
RUNS = 3
QUEUE = 8


def floor(bench: Bench) -> list[Row]:
    """Measures the machine's bandwidth and matmul rate, counts the work, and divides."""
    from torch.utils.flop_counter import FlopCounterMode

    model, device = bench.model, bench.model.lm_head.weight.device
    big = torch.zeros(2**30 if bench.cuda else 2**26, device=device)
    bandwidth = 2 * big.nbytes / bench.rate(big.neg_, 5)
    del big
    side = 8192 if bench.cuda else 1024
    square = torch.randn(side, side, device=device, dtype=bench.dtype)
    matmul = 2 * side**3 / bench.rate(lambda: square @ square, 5)
    small = torch.zeros(1, device=device)
    began = time.perf_counter()
    for _ in range(2000):
        small.add_(1)
    launch = (time.perf_counter() - began) / 2000
    request, config = bench.requests[0], model.config
    pixels = torch.from_numpy(bench.patches(request)).to(device)
    with torch.no_grad(), FlopCounterMode(display=False) as vision:
        visual = model.visual_features(pixels, [bench.grid])
    prefill = vision.get_total_flops() + language_flops(model, len(request.ids))
    merge = int(config.vision["spatial_merge_size"])
    cells = (bench.grid[0] // merge, bench.grid[1] // merge)
    with torch.no_grad(), FlopCounterMode(display=False) as head:
        model.heatmap_logits(visual.new_zeros(1, visual.shape[-1]), visual[None], cells)
    text = config.text
    size = text["hidden_size"] // text["num_attention_heads"]
    layers = int(text["num_hidden_layers"])
    wide = bench.dtype.itemsize
    cache = 2 * layers * text["num_key_value_heads"] * size * wide
    weights = sum(p.nbytes for p in model.model.layers.parameters()) + model.lm_head.weight.nbytes
    length = len(request.ids) + bench.tokens / 2
    sequences = bench.together
    step = max(
        (weights + sequences * length * cache) / bandwidth, 2 * sequences * weights / wide / matmul
    )
    work = (prefill + 2 * head.get_total_flops()) / matmul
    seconds = bench.images * work + step * bench.tokens * bench.images / sequences
    return [
        {
            "part": "floor",
            "bandwidth_tb_s": bandwidth / 1e12,
            "matmul_tflop_s": matmul / 1e12,
            "launch_us": launch * 1e6,
            "prefill_tflop": prefill / 1e12,
            "map_tflop": head.get_total_flops() / 1e12,
            "ms_per_step": step * 1e3,
            "seconds": seconds,
            "images_per_s": bench.images / seconds,
        }
    ]


def language_flops(model: ImageDoctorModel, tokens: int) -> float:
    """Counts the operations of a prefill: every weight once a token, and causal attention.

    By hand, because torch's counter refuses grouped queries.
    """
    text = model.config.text
    weights = sum(p.numel() for p in model.model.layers.parameters())
    return 2 * weights * tokens + 2 * tokens**2 * text["hidden_size"] * text["num_hidden_layers"]


def ours(bench: Bench) -> list[Row]:
    """Times the engine with both maps and without, and its prefill and decode step."""
    engine, rows = decoding(bench, GenerationLimits(bench.tokens, ()), "ours")
    step = engine.decode_step
    length = len(bench.requests[0].ids) + bench.tokens // 2
    with torch.inference_mode():
        # Of several devices each has its part of the rows.
        together = min(bench.together, step.buffers.sequences)
        each = bench.rate(lambda: step(together, length), 20)
    short = Engine(bench.model, GenerationLimits(1, ()), sequences=bench.sequences)
    list(short.replies(bench.requests))
    seconds, _, _ = bench.timed(lambda: list(short.replies(bench.requests)))
    steps = -(-bench.images // bench.together)
    prefill = bench.images / max(seconds - steps * each, 1e-9)
    for r in rows:
        r |= {"ms_per_step": each * 1e3, "prefill_images_per_s": prefill}
    return rows


def score(bench: Bench) -> list[Row]:
    """Times an answer template: the model chooses the digits of four numbers only.

    The prompt is the long one of `ours`; the official answer-only prompt is shorter.
    """
    digits = tuple(range(10))
    steps = tuple(
        step
        for span in SPANS
        for step in (
            ForcedStep(digits[:2], (10,)),
            ForcedStep(digits),
            ForcedStep(digits, (11,) * span),
        )
    )
    count = sum(1 + len(step.forced) for step in steps)
    return decoding(bench, GenerationLimits(count, (), forced_steps=steps), "score")[1]


def queue(bench: Bench) -> list[Row]:
    """Times a queue QUEUE times as long, to see whether rate and memory stay the same."""
    return decoding(bench, GenerationLimits(bench.tokens, ()), "queue", times=QUEUE)[1]


def sampled(bench: Bench) -> list[Row]:
    """Times a decode step with each way to draw a token, and with recorded log-probabilities."""
    rows: list[Row] = []
    steps = 50 if bench.cuda else 5
    count = bench.together
    length = len(bench.requests[0].ids) + bench.tokens // 2
    for name, sampling in SAMPLINGS.items():
        for log_probs in (False, True):
            limits = GenerationLimits(bench.tokens, (), sampling=sampling, log_probs=log_probs)
            engine = Engine(bench.model, limits, sequences=count)
            # Its first reply prefills all rows and makes the buffers.
            next(engine.replies(bench.requests[:count]))
            step = engine.decode_step
            assert step is not None
            with torch.inference_mode():
                times = sorted(
                    bench.rate(lambda s=step: s(count, length), steps) for _ in range(RUNS)
                )
            milliseconds = times[RUNS // 2] * 1e3
            base = rows[0]["ms_per_step"] if rows else milliseconds
            part = f"sample: {name}{', log-probabilities' if log_probs else ''}"
            more = milliseconds / base - 1
            rows.append({"part": part, "ms_per_step": milliseconds, "more_than_greedy": more})
    return rows


def decoding(
    bench: Bench, limits: GenerationLimits, name: str, *, times: int = 1
) -> tuple[Engine, list[Row]]:
    """Times all replies with both maps and without."""
    replicas = bench.replicas(limits)
    requests = bench.requests * times

    def run(maps: bool) -> list[list[int]]:
        return bench.answers(replicas, requests, maps=maps)

    warm, _, _ = bench.timed(lambda: run(True))
    rows = []
    for what, maps in ((name, True), (f"{name}, no maps", False)):
        runs = RUNS if times == 1 else 1
        seconds, peak, ids, spread = bench.middle(lambda maps=maps: run(maps), runs)
        rows.append(row(what, len(requests), seconds, peak) | spread | {"warm_s": warm, "ids": ids})
    return replicas[0].engine, rows


def devices(bench: Bench) -> list[Row]:
    """Times the queue with both maps on the first device alone, and on all together."""
    replicas, rows = bench.replicas(GenerationLimits(bench.tokens, ())), []
    for count in dict.fromkeys((1, len(replicas))):
        using = replicas[:count]
        warm, _, _ = bench.timed(lambda using=using: bench.answers(using, bench.requests))
        seconds, peak, ids, spread = bench.middle(
            lambda using=using: bench.answers(using, bench.requests), RUNS
        )
        one = row(f"devices: {count}", bench.images, seconds, peak) | spread | {"warm_s": warm}
        first = rows[0] if rows else one | {"ids": ids}
        same = float(np.mean([a == b for a, b in zip(ids, first["ids"], strict=True)]))
        times = first["seconds"] / seconds
        rows.append(one | {"times_one_device": times, "same_as_one_device": same, "ids": ids})
    return rows


def vllm(bench: Bench, *, folder: str | None) -> list[Row]:
    """Runs vLLM, which has the released size only; says why where it is left out."""
    reason = vllm_peer.missing()
    if not bench.cuda:
        reason = "it needs a GPU."
    elif folder:
        reason = "it is compared at the released size only, without --model."
    if reason is not None:
        print(f"vllm is left out: {reason}", flush=True)
        return []
    text = len(bench.requests[0].ids) - bench.grid[0] * bench.grid[1] // 4
    return vllm_peer.rows_of_process(tokens=bench.tokens, text=text)


def stock(model: ImageDoctorModel) -> Qwen2_5_VLForConditionalGeneration:
    """Returns transformers' own model class over the same tensors."""
    config = model.config
    whole = Qwen2_5_VLConfig(
        text_config=config.text_config(),
        vision_config=config.vision_config(),
        image_token_id=config.image_token_id,
        vision_start_token_id=config.vision_start_token_id,
        tie_word_embeddings=config.tied,
    )
    with torch.device("meta"):
        built = Qwen2_5_VLForConditionalGeneration(whole)
    built.model.visual = model.visual
    built.model.language_model = model.model
    built.lm_head = model.lm_head
    return built.eval()


def generate(bench: Bench, part: str) -> list[Row]:
    """Times `generate`: "official" one by one with all states, "dynamic", "static" batched."""
    built = stock(bench.model)
    alone = part == "official"
    requests = bench.requests[: OFFICIAL_IMAGES if alone else min(bench.together, 32)]
    config = GenerationConfig(
        max_new_tokens=bench.tokens,
        min_new_tokens=bench.tokens,
        do_sample=False,
        pad_token_id=0,
        output_hidden_states=alone,
        return_dict_in_generate=True,
        cache_implementation="static" if part == "static" else None,
    )

    def run(batch: list[GenerationRequest]) -> list[list[int]]:
        device = bench.model.lm_head.weight.device
        ids = torch.tensor([r.ids for r in batch], device=device)
        pixels = np.concatenate([bench.patches(r) for r in batch])
        kinds = {"mm_token_type_ids": (ids == bench.model.config.image_token_id).int()}
        takes_kinds = "mm_token_type_ids" in inspect.signature(built.forward).parameters
        out = built.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=torch.from_numpy(pixels).to(device, bench.dtype),
            image_grid_thw=torch.tensor([[1, *r.grid] for r in batch], device=device),
            **(kinds if takes_kinds else {}),
            generation_config=config,
        )
        return [list(map(int, r)) for r in out.sequences[:, ids.shape[1] :].tolist()]

    batches = [[r] for r in requests] if alone else [requests]
    warm = 0.0 if alone else bench.timed(lambda: run(requests))[0]
    runs = RUNS if part == "static" else 1
    seconds, peak, ids, spread = bench.middle(
        lambda: [r for batch in batches for r in run(batch)], runs
    )
    result = row(part, len(requests), seconds, peak) | spread | {"warm_s": warm, "ids": ids}
    return [result | {"note": f"{len(requests)} images, extrapolated"} if alone else result]


def row(part: str, images: int, seconds: float, peak: float) -> Row:
    """Returns the columns that every part has."""
    rate = images / seconds
    shared = {"part": part, "images": images, "seconds": seconds}
    return {**shared, "images_per_s": rate, "peak_gib": peak}


def compare(rows: list[Row]) -> list[Row]:
    """Adds each part's share of the floor, and how many of its replies equal ours."""
    of = {r["part"]: r for r in rows}
    for r in rows:
        if r["part"].startswith(OTHER_WORK):
            if r["part"].startswith("vllm") and r["images"] == of.get("ours", {}).get("images"):
                r["ours_is_times"] = of["ours"]["images_per_s"] / r["images_per_s"]
            continue
        if "floor" in of:
            r["share_of_floor"] = r["images_per_s"] / of["floor"]["images_per_s"]
        if "ours" in of and "ids" in r:
            pairs = zip(r["ids"], of["ours"]["ids"], strict=False)
            r["same_replies"] = float(np.mean([a == b for a, b in pairs]))
            r["ours_is_times"] = of["ours"]["images_per_s"] / r["images_per_s"]
    return [{key: value for key, value in r.items() if key != "ids"} for r in rows]


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint's folder; default: random, official size")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="also several, such as cuda:0,1")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, in order")
    parser.add_argument("--sample", action="store_true", help="also time steps that draw tokens")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--sequences", type=int, help="replies at a time; default: automatic")
    parser.add_argument("--precision", choices=["fp8"], help="of the products of ours and score")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--text", type=int, default=TEXT_TOKENS, help="text tokens of a prompt")
    parser.add_argument("--grid", type=int, default=36, help="patches a side, without --model")
    parser.add_argument("--seconds", type=float, default=240, help="no part starts after this")
    parser.add_argument("--out", type=Path, help="a Parquet file")
    parser.add_argument("--picture", type=Path, help="an SVG file")
    return parser.parse_args()


def main() -> None:
    """Runs the parts in --only; a part that fails is printed with its error."""
    args = arguments()
    began = time.perf_counter()
    bench = Bench(
        args.device,
        images=args.images,
        tokens=args.tokens,
        text=args.text,
        grid=args.grid,
        sequences=args.sequences,
        folder=args.model,
        precision=args.precision,
    )
    seconds = time.perf_counter() - began
    print(f"{environment()['device']}; model and images ready after {seconds:.1f} s", flush=True)
    rows: list[Row] = []
    own = {
        "floor": floor,
        "ours": ours,
        "score": score,
        "queue": queue,
        "sample": sampled,
        "devices": devices,
        "vllm": partial(vllm, folder=args.model),
    }
    for part in [*filter(None, args.only.split(",")), *(["sample"] if args.sample else [])]:
        if time.perf_counter() - began > args.seconds:
            print(f"{part} is left out: {args.seconds:g} s are over", flush=True)
            continue
        try:
            results = own[part](bench) if part in own else generate(bench, part)
        except Exception as error:  # the other parts still count
            print(json.dumps({"part": part, "error": f"{type(error).__name__}: {error}"}))
            continue
        rows += results
        for r in results:
            print(json.dumps({k: v for k, v in r.items() if k != "ids"}), flush=True)
        if bench.cuda:
            torch.cuda.empty_cache()
    print("-- all --")
    rows = compare(rows)
    for r in rows:
        print(json.dumps(r))
    if args.out:
        write(rows, args.out)
    if args.picture:
        args.picture.write_text(picture(rows), "utf-8")


if __name__ == "__main__":
    main()
