"""How fast the verifier scores, beside the official procedure, transformers and the floor.

    python examples/benchmarks/verifier_throughput.py                    # real size, random, GPU
    python examples/benchmarks/verifier_throughput.py --model FOLDER     # a checkpoint, any device
    python examples/benchmarks/verifier_throughput.py --only ours,dynamic --images 32 --tokens 64

All parts share weights, prompts, images and the number of reply tokens (end tokens are
switched off). `ours` comes first, so that its warm-up holds all that a process compiles. Both
maps of every image are decoded in `ours`, whatever the reply says, as random weights never ask
for them. Rows are printed as JSON, and written as Parquet with --out. What was expected and
found: VERIFIER_THROUGHPUT.md.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tts_verifier.analysis.svg import STYLE
from tts_verifier.log.environment import environment
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_model
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine, Request
from tts_verifier.verifiers.imagedoctor.engine.heatmaps import MapDecoder, MapQueue
from tts_verifier.verifiers.imagedoctor.engine.kv_cache import Limits, Turn
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.model.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel

PARTS = ("ours", "score", "queue", "floor", "static", "dynamic", "official")
OFFICIAL_IMAGES = 2
TEXT_TOKENS = 366
SPANS = (14, 6, 14, 0)
"""Known tokens after each of an answer's four numbers in the official vocabulary, about."""
RUNS = 3
QUEUE = 8
GIB = 2**30
Row = dict[str, Any]


class Bench:
    """The model, its requests, and how to time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.images, self.tokens, self.slots = args.images, args.tokens, args.slots
        self.cuda = args.device == "cuda"
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.grid = (args.grid, args.grid)
        if args.model:
            self.model = load_model(Path(args.model), dtype=self.dtype).to(args.device)
            processor = Processor.from_folder(Path(args.model), self.model.config)
            self.grid = processor(Image.new("RGB", (504, 504))).grid
        else:
            self.model = random_model(args.device, self.dtype)
        self.model.requires_grad_(False).eval()
        self.text = args.text
        self.requests = self._requests(args.images)

    def _requests(self, count: int) -> list[Request]:
        config, rng = self.model.config, np.random.default_rng(0)
        h, w = self.grid
        cells = h * w // int(config.vision["spatial_merge_size"]) ** 2
        values = 3 * int(config.vision["temporal_patch_size"]) * config.vision["patch_size"] ** 2
        low = min(config.image_token_id, config.vision_start_token_id, 256)
        made = []
        for _ in range(count):
            words = rng.integers(0, low, self.text).tolist()
            patches = rng.standard_normal((h * w, values)).astype(np.float32)
            ids = [*words[:16], *[config.image_token_id] * cells, *words[16:]]
            made.append(Request(ids, patches, self.grid))
        return made

    def timed(self, run: Callable[[], Any]) -> tuple[float, float, Any]:
        """Returns seconds, peak GiB and what `run` gave."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        given = run()
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        return seconds, torch.cuda.max_memory_allocated() / GIB if self.cuda else 0.0, given

    def middle(self, run: Callable[[], Any], runs: int) -> tuple[float, float, Any, Row]:
        """Returns what `timed` does of the middle one of some runs, and how far they spread."""
        told = sorted((self.timed(run) for _ in range(runs)), key=lambda one: one[0])
        spread = {"fastest_s": told[0][0], "slowest_s": told[-1][0]} if runs > 1 else {}
        return (*told[runs // 2], spread)

    def rate(self, run: Callable[[], Any], repeats: int) -> float:
        """Returns seconds of one of `repeats` runs, after one that is not counted."""
        run()
        return self.timed(lambda: [run() for _ in range(repeats)])[0] / repeats


def random_model(device: str, dtype: torch.dtype) -> ImageDoctorModel:
    """Makes the official size with random weights, straight on the device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return ImageDoctorModel(ImageDoctorConfig.from_dict({})).to(device)
    finally:
        torch.set_default_dtype(before)


def floor(bench: Bench) -> list[Row]:
    """Measures the machine, counts the work, and divides."""
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
    pixels = torch.from_numpy(request.patches).to(device)
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
    past = 2 * layers * text["num_key_value_heads"] * size * wide
    weights = sum(p.nbytes for p in model.model.layers.parameters()) + model.lm_head.weight.nbytes
    length = len(request.ids) + bench.tokens / 2
    rows = min(bench.slots, bench.images)
    step = max((weights + rows * length * past) / bandwidth, 2 * rows * weights / wide / matmul)
    work = (prefill + 2 * head.get_total_flops()) / matmul
    seconds = bench.images * work + step * bench.tokens * bench.images / rows
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
    """Counts reading a prompt: every weight once a token, causal attention over half the square.

    By hand, as the counter of torch refuses grouped queries.
    """
    text = model.config.text
    weights = sum(p.numel() for p in model.model.layers.parameters())
    return 2 * weights * tokens + 2 * tokens**2 * text["hidden_size"] * text["num_hidden_layers"]


def ours(bench: Bench) -> list[Row]:
    """Times the engine with both maps and without; also its parts."""
    engine, rows = decoding(bench, Limits(bench.tokens, ()), "ours")
    step = engine.step
    length = len(bench.requests[0].ids) + bench.tokens // 2
    with torch.inference_mode():
        each = bench.rate(lambda: step(min(bench.slots, bench.images), length), 20)
    short = Engine(bench.model, Limits(1, ()), slots=bench.slots)
    list(short.replies(bench.requests))
    seconds, _, _ = bench.timed(lambda: list(short.replies(bench.requests)))
    steps = -(-bench.images // bench.slots)
    prefill = bench.images / max(seconds - steps * each, 1e-9)
    for r in rows:
        r |= {"ms_per_step": each * 1e3, "prefill_images_per_s": prefill}
    return rows


def score(bench: Bench) -> list[Row]:
    """Times an answer whose digits alone are chosen: four numbers, what is known between them.

    The prompt is the long one of `ours`; the official answer-only one is shorter.
    """
    some = tuple(range(10))
    turns = tuple(
        turn
        for span in SPANS
        for turn in (Turn(some[:2], (10,)), Turn(some), Turn(some, (11,) * span))
    )
    count = sum(1 + len(turn.then) for turn in turns)
    return decoding(bench, Limits(count, (), turns=turns), "score")[1]


def queue(bench: Bench) -> list[Row]:
    """Times a queue that is QUEUE times as long: are rate and memory the same?"""
    return decoding(bench, Limits(bench.tokens, ()), "queue", times=QUEUE)[1]


def decoding(
    bench: Bench, limits: Limits, name: str, *, times: int = 1
) -> tuple[Engine, list[Row]]:
    """Times replies with both maps and without."""
    engine, decoder = Engine(bench.model, limits, slots=bench.slots), MapDecoder(bench.model)
    requests = bench.requests * times

    def run(maps: bool) -> list[list[int]]:
        wanted, found = MapQueue(decoder), {}
        for number, reply in engine.replies(requests):
            found[number] = reply.ids
            if maps:
                wanted.add(number, replace(reply, seen=(True, True)), bench.grid)
        wanted.finish()
        return [found[i] for i in range(len(requests))]

    warm, _, _ = bench.timed(lambda: run(True))
    rows = []
    for what, maps in ((name, True), (f"{name}, no maps", False)):
        runs = RUNS if times == 1 else 1
        seconds, peak, ids, spread = bench.middle(lambda maps=maps: run(maps), runs)
        rows.append(row(what, len(requests), seconds, peak) | spread | {"warm_s": warm, "ids": ids})
    return engine, rows


def stock(bench: Bench) -> Qwen2_5_VLForConditionalGeneration:
    """Returns transformers' own class over the same tensors."""
    model, config = bench.model, bench.model.config
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
    built = stock(bench)
    alone = part == "official"
    asked = bench.requests[: OFFICIAL_IMAGES if alone else min(bench.images, bench.slots)]
    config = GenerationConfig(
        max_new_tokens=bench.tokens,
        min_new_tokens=bench.tokens,
        do_sample=False,
        pad_token_id=0,
        output_hidden_states=alone,
        return_dict_in_generate=True,
        cache_implementation="static" if part == "static" else None,
    )

    def run(part_of: list[Request]) -> list[list[int]]:
        device = bench.model.lm_head.weight.device
        ids = torch.tensor([r.ids for r in part_of], device=device)
        pixels = np.concatenate([r.patches for r in part_of])
        kinds = {"mm_token_type_ids": (ids == bench.model.config.image_token_id).int()}
        asks = "mm_token_type_ids" in inspect.signature(built.forward).parameters
        out = built.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=torch.from_numpy(pixels).to(device, bench.dtype),
            image_grid_thw=torch.tensor([[1, *r.grid] for r in part_of], device=device),
            **(kinds if asks else {}),
            generation_config=config,
        )
        return [list(map(int, r)) for r in out.sequences[:, ids.shape[1] :].tolist()]

    batches = [[r] for r in asked] if alone else [asked]
    warm = 0.0 if alone else bench.timed(lambda: run(asked))[0]
    runs = RUNS if part == "static" else 1
    seconds, peak, ids, spread = bench.middle(
        lambda: [r for batch in batches for r in run(batch)], runs
    )
    made = row(part, len(asked), seconds, peak) | spread | {"warm_s": warm, "ids": ids}
    return [made | {"note": f"{len(asked)} images, extrapolated"} if alone else made]


def row(part: str, images: int, seconds: float, peak: float) -> Row:
    """Returns what every part tells."""
    rate = images / seconds
    return {"part": part, "seconds": seconds, "images_per_s": rate, "peak_gib": peak}


def compare(rows: list[Row]) -> list[Row]:
    """Adds the share of the floor, and of ours that chose the same tokens."""
    of = {r["part"]: r for r in rows}
    for r in rows:
        if r["part"].startswith(("score", "queue")):
            continue  # fewer tokens: neither the floor's work nor the others'
        if "floor" in of:
            r["share_of_floor"] = r["images_per_s"] / of["floor"]["images_per_s"]
        if "ours" in of and "ids" in r:
            pairs = zip(r["ids"], of["ours"]["ids"], strict=False)
            r["same_replies"] = float(np.mean([a == b for a, b in pairs]))
            r["ours_is_times"] = of["ours"]["images_per_s"] / r["images_per_s"]
    return [{key: value for key, value in r.items() if key != "ids"} for r in rows]


def write(rows: list[Row], path: Path) -> None:
    """Writes Parquet; each row says on what it was measured."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    on = {"device": environment()["device"], "torch": torch.__version__}
    rows = [r | on for r in rows]
    keys = list(dict.fromkeys(key for r in rows for key in r))
    pq.write_table(pa.table({key: [r.get(key) for r in rows] for key in keys}), path)


def picture(rows: list[Row]) -> str:
    """Draws images a second as bars, the floor's last, as SVG."""
    told = sorted((r for r in rows if "share_of_floor" in r), key=lambda r: r["images_per_s"])
    most, parts = told[-1]["images_per_s"], []
    for i, r in enumerate(told):
        y, width = 34 + 26 * i, 300 * r["images_per_s"] / most
        label = f"{r['images_per_s']:.3g} images/s, {r['share_of_floor']:.1%}"
        parts.append(
            f'<text x="104" y="{y + 14}" text-anchor="end">{r["part"]}</text>'
            f'<rect x="112" y="{y}" width="{width:.1f}" height="18" class="bar f{i % 4}"/>'
            f'<text x="{118 + width:.1f}" y="{y + 14}">{label}</text>'
        )
    size = f'width="580" height="{44 + 26 * len(told)}"'
    title = "Images scored a second, and share of the floor"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} class="chart"><title>{title}</title>'
        f'<style>{STYLE}</style><text x="112" y="20" class="title">{title}</text>'
        f"{''.join(parts)}</svg>\n"
    )


def main() -> None:
    """Runs the parts that were asked for; one that fails is a row with its error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint's folder; default: random, official size")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, in order")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--text", type=int, default=TEXT_TOKENS, help="text tokens of a prompt")
    parser.add_argument("--grid", type=int, default=36, help="patches a side, without --model")
    parser.add_argument("--seconds", type=float, default=240, help="no part starts after this")
    parser.add_argument("--out", type=Path, help="a Parquet file")
    parser.add_argument("--picture", type=Path, help="an SVG file")
    args = parser.parse_args()
    began = time.perf_counter()
    bench = Bench(args)
    passed = time.perf_counter() - began
    print(f"{environment()['device']}; model and images ready after {passed:.1f} s", flush=True)
    rows: list[Row] = []
    own = {"floor": floor, "ours": ours, "score": score, "queue": queue}
    for part in args.only.split(","):
        if time.perf_counter() - began > args.seconds:
            print(f"{part} is left out: {args.seconds:g} s are over", flush=True)
            continue
        try:
            made = own[part](bench) if part in own else generate(bench, part)
        except Exception as error:  # the other parts still count
            print(json.dumps({"part": part, "error": f"{type(error).__name__}: {error}"}))
            continue
        rows += made
        for r in made:
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
