"""Holds the miniature world's oracle and judge against each other, and against the truth.

    python examples/benchmarks/shapes_agreement.py --renders 2000 --out agreement
    python examples/benchmarks/shapes_agreement.py --renders 2000 --spoil soft --out soft
    python examples/benchmarks/shapes_agreement.py --run runs/bestofn --out samples

Renders have misalignments in half of them and a known truth. A run is the folder of a finished
`tts-run` on captions of the world, all of whose candidates are read. Printed are
rates by category, for renders by kind of constraint too; `OUT/rows.parquet` has a row a
picture, `OUT/disagreements.png` shows where the readers differ (O oracle, J judge, T truth).
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
from tts_verifier.shapes.readers import judge as judge_reader
from tts_verifier.shapes.readers import oracle as oracle_reader
from tts_verifier.shapes.readers.constraints import WEIGHTS, Reading, Thing, pixels_of
from tts_verifier.shapes.vocabulary import CATEGORIES, SIZE

SPOILS = ("none", "blur", "noise", "tint", "soft")
COLUMNS = 8
SHOWN = 64
"""Most disagreements on the sheet."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """A picture, what was asked, and what is true if that is known."""

    name: str
    pixels: Pixels
    spec: Spec
    truth: Reading | None = None


@dataclass(frozen=True)
class Read:
    """A case with both readings and the seconds they took."""

    case: Case
    oracle: Reading
    judge: Reading
    oracle_seconds: float
    judge_seconds: float


def spoil(pixels: Pixels, kind: str, rng: np.random.Generator) -> Pixels:
    """Degrades a picture: blur of 1.5 pixels, noise of 8 levels, a tint of up to 12 levels, or
    `soft`, the look of a small autoencoder: half the resolution, a tint, cloudy noise."""
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


def renders(count: int, options: argparse.Namespace) -> list[Case]:
    specs = random_specs(count, random.Random(options.seed))
    generator = torch.Generator().manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    cases: list[Case] = []
    for start in range(0, count, 100):
        made = render_flawed(specs[start : start + 100], generator, artifact=options.artifacts)
        pixels = (made.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for one, spec, truth in zip(pixels, made.specs, made.readings, strict=True):
            cases.append(Case(str(len(cases)), spoil(one, options.spoil, rng), spec, truth))
    return cases


def samples(folder: Path) -> list[Case]:
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


def read(case: Case) -> Read:
    torch.set_num_threads(1)
    start = time.process_time()
    oracle = oracle_reader.read_by_geometry(case.pixels, case.spec)
    middle = time.process_time()
    judge = judge_reader.read_by_fitting(case.pixels, case.spec)
    return Read(case, oracle, judge, middle - start, time.process_time() - middle)


def report(reads: list[Read]) -> None:
    for category in (*CATEGORIES, "all"):
        of = [r for r in reads if category in (r.case.spec.category, "all")]
        truth = [r.case.truth.passed if r.case.truth else None for r in of]
        rates(
            category, [(r.oracle.passed, r.judge.passed, t) for r, t in zip(of, truth, strict=True)]
        )
    for kind in WEIGHTS:
        of_kind = [(r, c) for r in reads for c in r.oracle.constraints if c.kind == kind]
        rates(
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


def rates(name: str, held: list[tuple[bool, bool, bool | None]]) -> None:
    """Prints one line for what oracle, judge and truth say holds."""
    if not held:
        return
    oracle, judge, truth = (np.array(column) for column in zip(*held, strict=True))
    line = f"{name:18s} n {len(held):5d}  agree {100 * np.mean(oracle == judge):6.2f} %"
    line += f"  oracle yes {100 * oracle.mean():5.1f} %  judge yes {100 * judge.mean():5.1f} %"
    if held[0][2] is not None:
        right = [100 * np.mean(found == truth) for found in (oracle, judge)]
        line += f"  oracle right {right[0]:6.2f} %  judge right {right[1]:6.2f} %"
    print(line)


def row(one: Read) -> dict[str, object]:
    truth = one.case.truth
    return {
        "image": one.case.name,
        "caption": phrase(one.case.spec),
        "category": one.case.spec.category,
        "oracle_passed": one.oracle.passed,
        "judge_passed": one.judge.passed,
        "true_passed": None if truth is None else truth.passed,
        "oracle_score": one.oracle.score,
        "judge_score": one.judge.score,
        "true_score": None if truth is None else truth.score,
        "judge_artifact": one.judge.artifact,
        "oracle_found": words(one.oracle.things),
        "judge_found": words(one.judge.things),
        "true_found": None if truth is None else words(truth.things),
    }


def words(things: Iterable[Thing]) -> str:
    return ", ".join(sorted(f"{t.colour} {t.shape or '?'}" for t in things))


def sheet(reads: list[Read]) -> Image.Image:
    """Draws pictures with their caption and readings, + for a pass."""
    width, height = SIZE + 60, SIZE + 56
    rows = -(-len(reads) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * width, max(rows, 1) * height), "white")
    pen = ImageDraw.Draw(canvas)
    for index, one in enumerate(reads):
        x, y = index % COLUMNS * width, index // COLUMNS * height
        canvas.paste(Image.fromarray(one.case.pixels), (x, y))
        readings = [("O", one.oracle), ("J", one.judge), ("T", one.case.truth)]
        lines = [phrase(one.case.spec)]
        lines += [f"{n}{'+' if r.passed else '-'} {words(r.things)}" for n, r in readings if r]
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
    cases = samples(options.run) if options.run else renders(options.renders, options)
    with ProcessPoolExecutor(options.workers) as pool:
        reads = list(pool.map(read, cases, chunksize=16))
    report(reads)
    options.out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([row(r) for r in reads]), options.out / "rows.parquet")
    apart = [r for r in reads if r.oracle.passed != r.judge.passed]
    sheet(apart[:SHOWN]).save(options.out / "disagreements.png")
    print(f"{len(apart)} disagreements of {len(reads)}: {options.out / 'disagreements.png'}")


if __name__ == "__main__":
    main()
