"""Measures how much an image's batch changes its verdict, and how often that changes a choice.

    python examples/benchmarks/batch_effect.py --out effect.parquet

The bundled verifier diagnoses 16 images of each caption of the miniature world in large batches,
in small ones and one by one, in float32 and in bfloat16, on a GPU if there is one. Each batch size
is compared with the largest: how many replies differ, how far written and expected scores and
heatmaps move, and for how many captions the best candidate is another.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from verifier_bench import write

from tts_verifier import Objective, Verifier, shapes
from tts_verifier.choice.objective import OFFICIAL_WEIGHTS
from tts_verifier.identity import seed_for
from tts_verifier.shapes.simulated import SimulatedGenerator
from tts_verifier.types import Draw, Job, Prompt, Verdict
from tts_verifier.types.score_names import EXPECTED

CANDIDATES = 16
BATCHES = (32, 4, 1)
FINE = Objective({name + EXPECTED: weight for name, weight in OFFICIAL_WEIGHTS.items()})


def candidates(count: int) -> list[tuple[str, Any]]:
    """Returns (caption, image) pairs, the candidates of a caption next to each other."""
    captions = shapes.captions(count, seed=11, split="held_out")
    jobs = [
        Job(Prompt(str(i), caption), Draw(seed_for(0, caption, n)))
        for i, caption in enumerate(captions)
        for n in range(CANDIDATES)
    ]
    samples = SimulatedGenerator().generate(jobs)
    return [(job.prompt.text, sample.image) for job, sample in zip(jobs, samples, strict=True)]


def moved(before: list[Verdict], after: list[Verdict], dtype: str, batch: int) -> dict[str, Any]:
    """Returns how verdicts of the same images differ."""
    pairs = list(zip(before, after, strict=True))
    row: dict[str, Any] = {"dtype": dtype, "batch": batch, "pictures": len(pairs)}
    row["replies_differ"] = float(np.mean([a.text != b.text for a, b in pairs]))
    for kind, names in (
        ("written", list(OFFICIAL_WEIGHTS)),
        ("expected", [name + EXPECTED for name in OFFICIAL_WEIGHTS]),
    ):
        by = np.array([[abs(a.scores[n] - b.scores[n]) for n in names] for a, b in pairs])
        row |= {f"{kind}_moves_mean": float(by.mean()), f"{kind}_moves_at_most": float(by.max())}
        row[f"{kind}_moves_p99"] = float(np.quantile(by, 0.99))
    maps = [
        float(np.abs(a.heatmaps[name] - b.heatmaps[name]).max())
        for a, b in pairs
        for name in a.heatmaps.keys() & b.heatmaps.keys()
    ]
    row |= {"map_moves_p99": float(np.quantile(maps, 0.99)), "map_moves_at_most": max(maps)}
    for kind, objective in (("written", Objective()), ("expected", FINE)):
        goals = [np.array([objective(v.scores) for v in side]) for side in (before, after)]
        best = [side.reshape(-1, CANDIDATES).argmax(1) for side in goals]
        row[f"{kind}_choices_differ"] = float(np.mean(best[0] != best[1]))
    return row


def main() -> None:
    """Verifies with all batch sizes in both precisions, and prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=40)
    parser.add_argument("--out", type=Path, help="a Parquet file")
    args = parser.parse_args()
    pairs = candidates(args.captions)
    captions, images = [caption for caption, _ in pairs], [image for _, image in pairs]
    on = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    rows = []
    for dtype in ("float32", "bfloat16"):
        verdicts = {}
        for batch in BATCHES:
            verifier = Verifier.from_pretrained("shapes", dtype=dtype, batch_size=batch)
            verdicts[batch] = verifier.verify(images, captions)
        for batch in BATCHES[1:]:
            rows.append({"on": on, **moved(verdicts[BATCHES[0]], verdicts[batch], dtype, batch)})
            print(json.dumps(rows[-1]), flush=True)
    if args.out:
        write(rows, args.out)


if __name__ == "__main__":
    main()
