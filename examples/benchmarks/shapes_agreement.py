"""Compares the miniature world's oracle and judge with each other, and with the truth.

    python examples/benchmarks/shapes_agreement.py --renders 2000 --out agreement
    python examples/benchmarks/shapes_agreement.py --renders 2000 --spoil soft --out soft
    python examples/benchmarks/shapes_agreement.py --run runs/bestofn --out samples

Half of the renders have misalignments, and their truth is known. A run is the folder of a finished
`tts-run` on captions of the world; all its candidates are read. The command prints rates by
category and by kind of constraint. `OUT/rows.parquet` has a row an image, and
`OUT/disagreements.png` shows where the readers differ (O oracle, J judge, T truth).
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from tts_verifier.images import as_image
from tts_verifier.shapes.captions import random_specs
from tts_verifier.shapes.flaws import render_flawed
from tts_verifier.shapes.grammar import Spec, parse_caption, phrase
from tts_verifier.shapes.readers.constraints import WEIGHTS, Reading, Thing, pixels_of
from tts_verifier.shapes.readers.judge import read_by_fitting
from tts_verifier.shapes.readers.oracle import read_by_geometry
from tts_verifier.shapes.renderer import to_uint8
from tts_verifier.shapes.vocabulary import CATEGORIES, SIZE

SPOILS = ("none", "blur", "noise", "tint", "soft")
COLUMNS = 8
SHOWN = 64
"""Most disagreements on the sheet."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """An image, its caption and the truth."""

    name: str
    """Path or number of the image."""
    pixels: Pixels
    """uint8 (128, 128, 3), sRGB."""
    spec: Spec
    """What the caption means."""
    truth: Reading | None = None
    """The truth about the image, if it is known."""


@dataclass(frozen=True)
class ReadCase:
    """A case with the readings of both readers."""

    case: Case
    """The image that was read."""
    oracle: Reading
    """The oracle's reading."""
    judge: Reading
    """The judge's reading."""
    oracle_seconds: float
    """Seconds of one core that the oracle took."""
    judge_seconds: float
    """Seconds of one core that the judge took."""


def spoil(pixels: Pixels, kind: str, rng: np.random.Generator) -> Pixels:
    """Degrades an image by one of SPOILS.

    `blur` is of 1.5 pixels, `noise` of 8 levels, `tint` of up to 12 levels. `soft` looks like
    the output of a small autoencoder: half the resolution, a tint and cloudy noise.
    """
    x: NDArray[np.floating[Any]] = pixels.astype(np.float32)
    if kind == "blur":
        x = ndimage.gaussian_filter(x, (1.5, 1.5, 0))
    if kind == "noise":
        x = x + rng.normal(0, 8, x.shape)
    if kind == "tint":
        x = x + rng.uniform(-12, 12, 3)
    if kind == "soft":
        half = ndimage.zoom(ndimage.gaussian_filter(x, (1.2, 1.2, 0)), (0.5, 0.5, 1), order=1)
        cloud = ndimage.gaussian_filter(rng.normal(0, 1, x.shape), (3, 3, 0))
        x = ndimage.zoom(half, (2, 2, 1), order=1) + rng.uniform(-12, 12, 3)
        x = x + 4 * cloud / cloud.std()
    return x.clip(0, 255).round().astype(np.uint8)


def render_cases(count: int, options: argparse.Namespace) -> list[Case]:
    specs = random_specs(count, random.Random(options.seed))
    generator = torch.Generator().manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    cases: list[Case] = []
    for start in range(0, count, 100):
        flawed = render_flawed(specs[start : start + 100], generator, artifact=options.artifacts)
        pixels = to_uint8(flawed.images).permute(0, 2, 3, 1).numpy()
        for image, spec, truth in zip(pixels, flawed.specs, flawed.readings, strict=True):
            cases.append(Case(str(len(cases)), spoil(image, options.spoil, rng), spec, truth))
    return cases


def run_cases(folder: Path) -> list[Case]:
    rows = pq.read_table(folder / "trials.parquet", columns=["image_path", "prompt"]).to_pylist()
    return [
        Case(
            x["image_path"],
            pixels_of(as_image(folder / x["image_path"])),
            parse_caption(x["prompt"]),
        )
        for x in rows
        if x["image_path"]
    ]


def read_case(case: Case) -> ReadCase:
    torch.set_num_threads(1)
    start = time.process_time()
    oracle = read_by_geometry(case.pixels, case.spec)
    middle = time.process_time()
    judge = read_by_fitting(case.pixels, case.spec)
    return ReadCase(case, oracle, judge, middle - start, time.process_time() - middle)


def report(reads: list[ReadCase]) -> None:
    for category in (*CATEGORIES, "all"):
        part = [r for r in reads if category in (r.case.spec.category, "all")]
        truth = [r.case.truth.passed if r.case.truth else None for r in part]
        print_rates(
            category,
            [(r.oracle.passed, r.judge.passed, t) for r, t in zip(part, truth, strict=True)],
        )
    for kind in WEIGHTS:
        of_kind = [(r, c) for r in reads for c in r.oracle.constraints if c.kind == kind]
        print_rates(
            f"  {kind}",
            [
                (
                    r.oracle.constraints[c],
                    r.judge.constraints[c],
                    r.case.truth.constraints[c] if r.case.truth else None,
                )
                for r, c in of_kind
            ],
        )
    for name in ("oracle_seconds", "judge_seconds"):
        print(f"{name}: {np.mean([getattr(r, name) for r in reads]):.4f} an image, one core")


def print_rates(name: str, passes: list[tuple[bool, bool, bool | None]]) -> None:
    """Prints one line of rates.

    Args:
        name: what the rates are of.
        passes: an item's word of oracle, judge and truth, None where that is unknown.
    """
    if not passes:
        return
    oracle, judge, truth = (np.array(column) for column in zip(*passes, strict=True))
    line = f"{name:18s} n {len(passes):5d}  agree {100 * np.mean(oracle == judge):6.2f} %"
    line += f"  oracle yes {100 * oracle.mean():5.1f} %  judge yes {100 * judge.mean():5.1f} %"
    if passes[0][2] is not None:
        right = [100 * np.mean(says == truth) for says in (oracle, judge)]
        line += f"  oracle right {right[0]:6.2f} %  judge right {right[1]:6.2f} %"
    print(line)


def table_row(read: ReadCase) -> dict[str, object]:
    truth = read.case.truth
    return {
        "image": read.case.name,
        "caption": phrase(read.case.spec),
        "category": read.case.spec.category,
        "oracle_passed": read.oracle.passed,
        "judge_passed": read.judge.passed,
        "true_passed": None if truth is None else truth.passed,
        "oracle_score": read.oracle.score,
        "judge_score": read.judge.score,
        "true_score": None if truth is None else truth.score,
        "judge_artifact": read.judge.artifact,
        "oracle_found": describe_things(read.oracle.things),
        "judge_found": describe_things(read.judge.things),
        "true_found": None if truth is None else describe_things(truth.things),
    }


def describe_things(things: Iterable[Thing]) -> str:
    return ", ".join(sorted(f"{t.colour} {t.shape or '?'}" for t in things))


def disagreement_sheet(reads: list[ReadCase]) -> Image.Image:
    """Shows images with their caption and readings, + for a pass."""
    width, height = SIZE + 60, SIZE + 56
    rows = -(-len(reads) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * width, max(rows, 1) * height), "white")
    pen = ImageDraw.Draw(canvas)
    for index, read in enumerate(reads):
        x, y = index % COLUMNS * width, index // COLUMNS * height
        canvas.paste(Image.fromarray(read.case.pixels), (x, y))
        readings = [("O", read.oracle), ("J", read.judge), ("T", read.case.truth)]
        lines = [phrase(read.case.spec)]
        lines += [
            f"{n}{'+' if r.passed else '-'} {describe_things(r.things)}" for n, r in readings if r
        ]
        for k, line in enumerate(lines):
            pen.text((x, y + SIZE + 12 * k), line[:31], fill="black")
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--renders", type=int, help="how many fresh renders")
    source.add_argument("--run", type=Path, help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spoil", choices=SPOILS, default="none")
    parser.add_argument("--artifacts", type=float, default=0.0, help="share of renders with one")
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    cases = run_cases(options.run) if options.run else render_cases(options.renders, options)
    with ProcessPoolExecutor(options.workers) as pool:
        reads = list(pool.map(read_case, cases, chunksize=16))
    report(reads)
    options.out.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist([table_row(r) for r in reads]), options.out / "rows.parquet"
    )
    apart = [r for r in reads if r.oracle.passed != r.judge.passed]
    disagreement_sheet(apart[:SHOWN]).save(options.out / "disagreements.png")
    print(f"{len(apart)} disagreements of {len(reads)}: {options.out / 'disagreements.png'}")


if __name__ == "__main__":
    main()
