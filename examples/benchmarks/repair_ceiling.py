"""How often does repainting a flaw repair it, with the oracle's mask and the verifier's?

    tts-run bestofn prompts=captions.txt output=runs/held_out
    python examples/benchmarks/repair_ceiling.py runs/held_out --out repairs.parquet

Takes images that the judge fails from a finished best-of-n run of the miniature world, the same
number of each category, and repaints each under several masks and strengths. The oracle's mask
is the ceiling of the idea with this generator: no verifier can know better where an image is
wrong. `spot` is the hottest spot of a mask alone. For comparison, `fresh` is the share of the
caption's other images that pass. The held-out judge decides what is repaired.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from tts_verifier import shapes
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.log import read_trials
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.strategies.common.masks import MaskRule, flaw_mask, spots
from tts_verifier.types import Job, Mask, Repaint, Trial


def masks_of(trial: Trial, rule: MaskRule) -> dict[str, Mask]:
    """Returns the masks to try by name; a mask without any place is absent."""
    image = trial.image.load()
    truth = shapes.oracle(image, trial.prompt.text).misalignment
    heatmaps = [trial.verdict.heatmaps[name] for name in sorted(trial.verdict.heatmaps)]
    masks = {}
    for name, maps in (("oracle", [truth]), ("verifier", heatmaps)):
        whole = (
            flaw_mask(maps, (), size=image.size, rule=rule) if any(m.any() for m in maps) else None
        )
        if whole is not None:
            masks[name] = whole
            masks[f"{name} spot"] = spots(whole, maps)[0]
    return masks


def parents(run: Path, each: int) -> Iterator[tuple[Trial, float]]:
    """Yields failed images and the pass rate of their captions' other images."""
    by_prompt: dict[str, list[Trial]] = defaultdict(list)
    for trial in read_trials(run):
        by_prompt[trial.prompt.id].append(trial)
    taken: dict[str, int] = defaultdict(int)
    for trials in by_prompt.values():
        category = parse_caption(trials[0].prompt.text).category
        failed = [t for t in trials if not t.judge["passed"]]
        if failed and taken[category] < each:
            taken[category] += 1
            rest = [t.judge["passed"] for t in trials if t is not failed[0]]
            yield failed[0], float(np.mean(rest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--each", type=int, default=20, help="parents of a category")
    parser.add_argument("--strengths", default="0.6,0.8,1.0")
    parser.add_argument("--dilate", type=float, default=MaskRule().dilate)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    strengths = [float(s) for s in options.strengths.split(",")]
    generator, rule = DiffusersGenerator("shapes"), MaskRule(dilate=options.dilate)
    requests: list[tuple[Job, dict[str, Any]]] = []
    for trial, fresh in parents(options.run, options.each):
        category = parse_caption(trial.prompt.text).category
        for name, mask in masks_of(trial, rule).items():
            for k, strength in enumerate(strengths):
                job = Job(trial.prompt, Repaint(trial.id, mask, 77 + k, strength), (trial,))
                area = float(mask.array().mean())
                requests.append((job, {
                    "prompt": trial.prompt.text, "category": category, "mask": name,
                    "area": area, "strength": strength, "fresh": fresh,
                }))  # fmt: skip
    rows = []
    samples = generator.generate([job for job, _ in requests])
    for (job, about), sample in zip(requests, samples, strict=True):
        passed = sample.image is not None and shapes.judge(sample.image, job.prompt.text).passed
        rows.append({**about, "passed": passed, "evaluations": sample.cost.network_evaluations})
    parquet.write_table(pa.Table.from_pylist(rows), options.out)
    report(rows)


def report(rows: list[dict[str, Any]]) -> None:
    """Prints pass rates by category, mask and strength.

    In brackets are the passes that one drawing's worth of evaluations buys.
    """
    whole = max(row["evaluations"] / row["strength"] for row in rows)
    strengths = sorted({row["strength"] for row in rows})
    for category in [*dict.fromkeys(row["category"] for row in rows), None]:
        part = [row for row in rows if category in (None, row["category"])]
        fresh = {row["prompt"]: row["fresh"] for row in part}
        print(f"{category or 'all'}: {len(fresh)} parents, fresh {np.mean([*fresh.values()]):.1%}")
        for mask in dict.fromkeys(row["mask"] for row in part):
            repaints = [row for row in part if row["mask"] == mask]
            area = np.mean([row["area"] for row in repaints])
            columns = [f"  {mask:14s} n {len(repaints) // len(strengths):3d} area {area:.2f}"]
            for strength in strengths:
                rate = np.mean([r["passed"] for r in repaints if r["strength"] == strength])
                cost = (
                    np.mean([r["evaluations"] for r in repaints if r["strength"] == strength])
                    / whole
                )
                columns.append(f"{strength}: {rate:.1%} ({rate / cost:.1%} a drawing)")
            print("  ".join(columns), flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
