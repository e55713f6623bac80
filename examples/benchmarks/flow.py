"""Fine-tunes the bundled generator by a variant of `tts-train flow`, and measures what it draws.

    python examples/benchmarks/flow.py run nft-scalar --seed 0 --out runs/flow-bench
    python examples/benchmarks/flow.py base --out runs/flow-bench
    python examples/benchmarks/flow.py table runs/flow-bench
    python examples/benchmarks/flow.py compare runs/flow-bench nft-place nft-scalar
    python examples/benchmarks/flow.py plot runs/flow-bench best_of_n.svg nft-four nft-lora base
    python examples/benchmarks/flow.py curves runs/flow-bench curves.svg nft-global nft-place

`run` trains and then draws --captions held-out captions --draws times each, at each guidance, with
20 steps. The verifier scores every picture; judge and oracle, which no variant trains on, say
which of them pass. OUT/VARIANT-SEED/pictures.parquet has a row for each picture, metrics.parquet a
row for each step. --set takes overrides of the config, such as steps=40. `table` prints pass rates,
`compare` paired differences of the single draws, over captions and the seeds that both have,
`curves` plots what evaluations found during training. One process works on one GPU:
CUDA_VISIBLE_DEVICES chooses it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from pyarrow import parquet

from tts_verifier import Objective, shapes
from tts_verifier.analysis.svg import Chart, Series, line_chart, standalone_svg
from tts_verifier.errors import RunError
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.training.entries import run_entry
from tts_verifier.training.flow.model import FlowModel
from tts_verifier.training.flow.rewards import LoadedVerifier, VerifierSpec
from tts_verifier.training.flow.sampling import Sampler

CAPTIONS_SEED = 7003
DRAWS_SEED = 11
STEPS = 20
SEQUENCE = 16
POLICY = [
    *["loss=policy", "trained_steps=5", "clip=1e-3", "kl=0.004", "draw_ahead=false"],
    *["learning_rate=2e-4", "pass_bonus=0", "stop={}"],
]
PLAIN = ["pass_bonus=0"]
FOUR = ["updates=4", "learning_rate=4e-4", "pass_bonus=0", "stop={}"]
HALF_RATE = ["learning_rate=4e-4"]
FIRST = ["steps=150", "learning_rate=2e-4", "pass_bonus=0"]
TRUE_MAPS = ["map_verifier={verifier: shapes-oracle, processes: 12}", "maps={misalignment: 1.0}"]
LORA = ["lora_rank=32", "learning_rate=2e-3", "updates=4", "pass_bonus=0", "stop={}"]
PLACE = ["advantage=dense", "deviation=global"]
AWM = ["loss=awm", "pass_bonus=0"]
VARIANTS = {
    "nft-scalar": [],
    "nft-plain": PLAIN,
    "nft-global": [*PLAIN, "deviation=global"],
    "nft-place": [*PLAIN, *PLACE],
    "nft-dense": [*PLAIN, "advantage=dense"],
    "nft-penalty": [*PLAIN, "advantage=penalty"],
    "nft-mask": [*PLAIN, "advantage=mask"],
    "nft-true": [*PLAIN, *PLACE, *TRUE_MAPS],
    "nft-cfg": [*PLAIN, "guidance=4"],
    "nft-lora": LORA,
    "nft-four": FOUR,
    "nft-four-bonus": [*FOUR, "pass_bonus=0.5"],
    "nft-four-place": [*FOUR, *PLACE],
    "nft-half-rate": HALF_RATE,
    "nft-half-rate-plain": [*HALF_RATE, "pass_bonus=0"],
    "nft-reference": [*HALF_RATE, "reference_rate=0.1"],
    "nft-beta": [*HALF_RATE, "nft_beta=0.5"],
    "nft-first": FIRST,
    "nft-first-lora": [*FIRST, "lora_rank=32", "learning_rate=1e-3"],
    "awm-plain": AWM,
    "awm-half-rate": ["loss=awm", *HALF_RATE],
    "awm-place": [*AWM, *PLACE],
    "awm-cfg": [*AWM, "guidance=4"],
    "policy-scalar": POLICY,
    "policy-place": [*POLICY, *PLACE],
    "policy-mask": [*POLICY, "advantage=mask"],
    "policy-penalty": [*POLICY, "advantage=penalty"],
    "policy-true": [*POLICY, *PLACE, *TRUE_MAPS],
    "policy-half-rate": [*POLICY, "learning_rate=1e-4"],
    "policy-cps": [*POLICY, "sampler=cps"],
    "policy-cfg": [*POLICY, "guidance=4"],
}
"""Variant -> overrides of the packaged config flow-shapes."""


def train(options: argparse.Namespace, folder: Path) -> float:
    """Trains a variant, and returns the seconds."""
    began = time.perf_counter()
    overrides = [*VARIANTS[options.variant], f"seed={options.seed}", f"output={folder / 'run'}"]
    try:
        run_entry("flow", "flow-shapes", [*overrides, "save_state=false", *options.overrides])
    except RunError as error:
        # What a run came to that a rule ended is measured all the same.
        if not str(error).startswith("stop."):
            raise
        print(error, flush=True)
    return time.perf_counter() - began


def trained_model(folder: Path | None, device: torch.device) -> FlowModel:
    """Loads the bundled generator, or what a run wrote."""
    if folder is None:
        return FlowModel("shapes", device)
    checkpoint = folder / "run" / "checkpoint"
    if (checkpoint / "model_index.json").exists():
        return FlowModel(checkpoint, device, max_sequence_length=SEQUENCE)
    model = FlowModel("shapes", device)
    model.pipe.load_lora_weights(checkpoint)
    return model


def measure(model: FlowModel, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Draws held-out captions and returns a row for each picture."""
    captions = shapes.captions(options.captions, seed=CAPTIONS_SEED, split="held_out")
    prompts = [caption for caption in captions for _ in range(options.draws)]
    device = str(model.device)
    readers = {
        name: LoadedVerifier(
            VerifierSpec(f"shapes-{name}", {"passed": 1.0}, processes=options.processes), device
        )
        for name in ("judge", "oracle")
    }
    verifier = LoadedVerifier(VerifierSpec(options.verifier), device)
    rows = []
    for guidance in options.guidance:
        began = time.perf_counter()
        sampler = Sampler(
            model, model.transformer, steps=STEPS, guidance=guidance, block=options.block
        )
        # Equal noise for all variants: the differences are paired.
        images = sampler.draw(captions, options.draws, DRAWS_SEED).images
        drawn = time.perf_counter() - began
        found = {n: reader.verify(images, prompts) for n, reader in readers.items()}
        verdicts = verifier.verify(images, prompts)
        print(
            f"guidance {guidance:g}: {len(images)} pictures drawn in {drawn:.1f} s, read in "
            f"{time.perf_counter() - began - drawn:.1f} s",
            flush=True,
        )
        for i, prompt in enumerate(prompts):
            scores = verdicts[i].scores
            row = {
                "guidance": float(guidance),
                "caption": prompt,
                "category": parse_caption(prompt).category,
                "draw": i % options.draws,
                **{name: float(v[i].scores["passed"]) for name, v in found.items()},
                "clean": float(found["judge"][i].scores["clean"]),
                "alignment": float(scores.get("semantic_alignment", math.nan)),
                "objective": Objective()(scores),
            }
            rows.append(row)
    for reader in readers.values():
        reader.close()
    return rows


def rates(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Returns pass rates of the pictures of one guidance, and their standard errors."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["caption"]].append(row)
    found: dict[str, float] = {}
    for name in ("judge", "oracle"):
        means = np.array([np.mean([r[name] for r in group]) for group in groups.values()])
        found[name], found[f"{name}_se"] = means.mean(), means.std() / math.sqrt(len(means))
    found["verifier_perfect"] = float(np.mean([r["alignment"] >= 1 for r in rows]))
    draws = min(map(len, groups.values()))
    for n in (n for n in (2, 4, 8) if n <= draws):
        best = [
            max(group[:n], key=lambda r: -1 if math.isnan(r["objective"]) else r["objective"])
            for group in groups.values()
        ]
        found[f"best_of_{n}"] = float(np.mean([r["judge"] for r in best]))
    found["clean"] = float(np.mean([r["clean"] for r in rows]))
    return found


def table(folder: Path) -> None:
    """Prints the pass rates of all runs, and their means over seeds."""
    runs: dict[tuple[str, float], list[dict[str, float]]] = defaultdict(list)
    for path in sorted(folder.rglob("pictures.parquet")):
        variant = path.parent.name.rpartition("-")[0] or path.parent.name
        rows = parquet.read_table(path).to_pylist()
        for guidance in sorted({row["guidance"] for row in rows}):
            found = rates([row for row in rows if row["guidance"] == guidance])
            runs[variant, guidance].append(found)
            listed = ", ".join(f"{n} {v:.3f}" for n, v in found.items())
            print(f"{path.parent.name}, guidance {guidance:g}: {listed}")
    print("\nvariant, guidance: mean over seeds")
    for (variant, guidance), found_runs in runs.items():
        # Of what all have: a seed with more draws has more of best-of-n.
        fewest = min(found_runs, key=len)
        means = {n: float(np.mean([r[n] for r in found_runs])) for n in fewest}
        listed = ", ".join(f"{n} {v:.3f}" for n, v in means.items())
        print(f"{variant}, {guidance:g} ({len(found_runs)}): {listed}")


def single_draws(folder: Path, variant: str) -> dict[tuple[str, float, str], dict[str, float]]:
    """Returns (category, guidance, caption) -> seed -> the judge's pass rate of its draws."""
    found: dict[tuple[str, float, str], dict[str, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for path in folder.rglob("pictures.parquet"):
        name, _, seed = path.parent.name.rpartition("-")
        if (name or path.parent.name) == variant:
            for row in parquet.read_table(path).to_pylist():
                key = (row["category"], row["guidance"], row["caption"])
                found[key][seed if name else "all"].append(row["judge"])
    return {k: {s: float(np.mean(v)) for s, v in seeds.items()} for k, seeds in found.items()}


def compare(folder: Path, one: str, other: str) -> None:
    """Prints the paired differences between two variants, with 95 % intervals over captions."""
    first, second = single_draws(folder, one), single_draws(folder, other)
    differences: dict[tuple[float, str], list[float]] = defaultdict(list)
    for (category, guidance, caption), seeds in first.items():
        there = second.get((category, guidance, caption), {})
        both = [(r, there.get(s, there.get("all"))) for s, r in seeds.items()]
        pairs = [a - b for a, b in both if b is not None]
        if pairs:
            for group in (category, "all"):
                differences[guidance, group].append(float(np.mean(pairs)))
    for (guidance, group), values in sorted(differences.items()):
        interval = 1.96 * np.std(values) / math.sqrt(len(values))
        print(
            f"{one} - {other}, guidance {guidance:g}, {group}: {np.mean(values):+.3f} "
            f"+- {interval:.3f} ({len(values)} captions)"
        )


def plot(folder: Path, out: Path, variants: list[str]) -> None:
    """Plots best-of-n of variants against its cost: training and search together."""
    curves: dict[tuple[str, float], list[dict[str, float]]] = defaultdict(list)
    for path in sorted(folder.rglob("pictures.parquet")):
        variant = path.parent.name.rpartition("-")[0] or path.parent.name
        rows = parquet.read_table(path).to_pylist() if variant in variants else []
        for guidance in sorted({row["guidance"] for row in rows}):
            found = rates([row for row in rows if row["guidance"] == guidance])
            curves[variant, guidance].append(found)
    series = []
    for (variant, guidance), runs in curves.items():
        # Guidance evaluates the network twice a step.
        cost = STEPS * (1 if guidance == 1 else 2)
        # One curve is of one set of runs: those with the most draws a caption.
        most = max(map(len, runs))
        full = [run for run in runs if len(run) == most]
        points = [(cost, np.mean([run["judge"] for run in full]))]
        points += [
            (n * cost, np.mean([run[f"best_of_{n}"] for run in full]))
            for n in (2, 4, 8)
            if f"best_of_{n}" in full[0]
        ]
        series.append(Series(f"{variant} at {guidance:g}", points))
    title = "Judge's pass rate of best-of-n, by guidance"
    chart = Chart(title, "network evaluations of a prompt", series, y="share")
    out.write_text(standalone_svg([line_chart(chart)], title))


def curves(folder: Path, out: Path, variants: list[str]) -> None:
    """Plots the judge's pass rate in training against pictures and seconds, means over seeds."""
    by: dict[str, list[Series]] = {"pictures": [], "seconds": []}
    for variant in variants:
        points: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in by}
        for path in sorted(folder.glob(f"{variant}-[0-9]/metrics.parquet")):
            steps = parquet.read_table(path).to_pylist()
            after = np.cumsum([0.0, *(step["seconds"] for step in steps)])
            drawn = np.cumsum([0.0, *(step["rows"] for step in steps)])
            held = [
                (i, s["held_shapes-judge"])
                for i, s in enumerate(steps)
                if s.get("held_shapes-judge") is not None
            ]
            points["pictures"].append([(drawn[i], y) for i, y in held])
            points["seconds"].append([(after[i], y) for i, y in held])
        for name, runs in points.items():
            # Runs that a rule ended have fewer evaluations.
            means = [tuple(np.mean(at, 0)) for at in zip(*runs, strict=False)]
            by[name].append(Series(f"{variant} ({len(runs)})", means))
    title = "Judge's pass rate of held-out captions"
    charts = [line_chart(Chart(title, name, series, y="share")) for name, series in by.items()]
    out.write_text(standalone_svg(charts, title))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "base"):
        command = commands.add_parser(name)
        if name == "run":
            command.add_argument("variant", choices=VARIANTS)
            command.add_argument("--set", dest="overrides", nargs="*", default=[])
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--captions", type=int, default=1000)
        command.add_argument("--draws", type=int, default=8)
        command.add_argument("--guidance", type=float, nargs="+", default=[1.0, 4.0])
        command.add_argument("--block", type=int, default=500)
        command.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) // 4))
        command.add_argument("--verifier", default="shapes")
    commands.add_parser("table").add_argument("folder", type=Path)
    command = commands.add_parser("compare")
    command.add_argument("folder", type=Path)
    command.add_argument("variants", nargs=2)
    for name in ("plot", "curves"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        command.add_argument("chart", type=Path)
        command.add_argument("variants", nargs="+")
    options = parser.parse_args()
    if options.command in ("plot", "curves"):
        draw = plot if options.command == "plot" else curves
        draw(options.folder, options.chart, options.variants)
        return
    if options.command == "compare":
        compare(options.folder, *options.variants)
        return
    if options.command == "table":
        table(options.folder)
        return
    name = "base" if options.command == "base" else f"{options.variant}-{options.seed}"
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {"device": "cpu", "torch": torch.__version__}
    if torch.cuda.is_available():
        about["device"] = torch.cuda.get_device_name()
    if options.command == "run":
        about["train_seconds"] = train(options, folder)
        tables = [parquet.read_table(p) for p in sorted((folder / "run/metrics").glob("*"))]
        steps = pyarrow.concat_tables(tables, promote_options="default")
        parquet.write_table(steps, folder / "metrics.parquet")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = measure(trained_model(None if name == "base" else folder, device), options)
    pictures = pyarrow.Table.from_pylist(rows)
    about = {b"about": json.dumps(about).encode()}
    parquet.write_table(pictures.replace_schema_metadata(about), folder / "pictures.parquet")
    weights = folder / "run" / "checkpoint" / "pytorch_lora_weights.safetensors"
    if weights.exists():
        shutil.copy(weights, folder)
    table(folder)


if __name__ == "__main__":
    main()
