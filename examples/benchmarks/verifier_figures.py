"""Measures a verifier on held-out images, with controls that must fail.

    python examples/benchmarks/verifier_figures.py --out figures.parquet
    python examples/benchmarks/verifier_figures.py --verifier FOLDER --samples FOLDER …

`--samples`: a folder of *.npz files with `images` (N, 128, 128, 3) uint8 and `captions`, eight
images of each caption. Without it, only renders with planted flaws are measured.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from tts_verifier import Verifier
from tts_verifier.training.miniature.verifier.benchmark import (
    CONTROLS,
    BenchmarkRow,
    Case,
    ControlCondition,
    benchmark_figures,
    chance_correlation,
    measure,
    rendered_cases,
    sampled_cases,
    write_rows,
)
from tts_verifier.training.miniature.verifier.data import GeneratorSamples
from tts_verifier.types import Detail

CONDITIONS: list[tuple[ControlCondition, Detail]] = [
    *((control, "diagnose") for control in CONTROLS),
    ("none", "score"),
]


def measure_set(
    verifier: Verifier, name: str, cases: list[Case], control_count: int | None
) -> list[BenchmarkRow]:
    """Measures and prints one set of images under every condition."""
    few = cases[:control_count]
    chance = chance_correlation(few)
    print(f"{name}, chance for the control shuffled: cc_misalignment {chance:.3f}")
    rows: list[BenchmarkRow] = []
    for control, detail in CONDITIONS:
        start = time.perf_counter()
        main_figures = (control, detail) == ("none", "diagnose")
        used = cases if main_figures else few
        part = measure(verifier, used, name=name, control=control, detail=detail)
        rate = len(part) / (time.perf_counter() - start)
        rows += part
        print(f"{name}, control {control}, detail {detail}, {rate:.1f} images/s")
        for figure, value in benchmark_figures(part).items():
            print(f"  {figure:24s} {value:.3f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verifier", default="shapes")
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="renders")
    parser.add_argument("--control-count", type=int, help="images of all but the main figures")
    parser.add_argument("--seed", type=int, default=2_000_003)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    verifier = Verifier.from_pretrained(options.verifier)
    sets = {"renders": rendered_cases(options.count, options.seed)}
    if options.samples is not None:
        samples = GeneratorSamples.read(options.samples)
        sets["samples"] = sampled_cases(samples, artifacts=False)
        sets["samples with artifacts"] = sampled_cases(samples, artifacts=True)
    rows: list[BenchmarkRow] = []
    for name, cases in sets.items():
        rows += measure_set(verifier, name, cases, options.control_count)
    write_rows(rows, options.out)


if __name__ == "__main__":
    main()
