"""Measures a verifier on held-out pictures, with controls.

    python examples/benchmarks/verifier_figures.py --out figures.parquet
    python examples/benchmarks/verifier_figures.py --verifier FOLDER --samples FOLDER …

`--samples`: *.npz files with `images` (N, 128, 128, 3) uint8 and `captions`, eight of each
caption; without it only renders with planted flaws are measured.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from tts_verifier import Verifier
from tts_verifier.training.miniature.verifier.data import Samples
from tts_verifier.training.miniature.verifier.figures import (
    CONTROLS,
    Control,
    Row,
    measure,
    of_another_caption,
    renders,
    sampled,
    summary,
    write,
)
from tts_verifier.types import Detail

ASKED: list[tuple[Control, Detail]] = [
    *((control, "diagnose") for control in CONTROLS),
    ("none", "score"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verifier", default="shapes")
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="renders")
    parser.add_argument("--control-count", type=int, help="pictures of all but the main figures")
    parser.add_argument("--seed", type=int, default=2_000_003)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    verifier = Verifier.from_pretrained(options.verifier)
    sets = {"renders": renders(options.count, options.seed)}
    if options.samples is not None:
        samples = Samples.read(options.samples)
        sets["samples"] = sampled(samples, artifacts=False)
        sets["samples with artifacts"] = sampled(samples, artifacts=True)
    rows: list[Row] = []
    for name, cases in sets.items():
        used = cases[: options.control_count]
        chance = of_another_caption(used)
        print(f"{name}, chance for the control shuffled: cc_misalignment {chance:.3f}")
        for control, detail in ASKED:
            began = time.perf_counter()
            main_figures = (control, detail) == ("none", "diagnose")
            used = cases if main_figures else cases[: options.control_count]
            part = measure(verifier, used, name=name, control=control, detail=detail)
            rate = len(part) / (time.perf_counter() - began)
            rows += part
            print(f"{name}, control {control}, detail {detail}, {rate:.1f} pictures/s")
            for figure, value in summary(part).items():
                print(f"  {figure:24s} {value:.3f}", flush=True)
    write(rows, options.out)


if __name__ == "__main__":
    main()
