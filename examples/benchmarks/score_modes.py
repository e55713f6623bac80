"""What the quick modes of the verifier lose against `diagnose`, and how often scores tie.

    python examples/benchmarks/score_modes.py runs/bestofn --prompts 60 --out modes.parquet

Judges the pictures of a finished best_of_n run on the miniature world anew: with reasons and
heatmaps ("diagnose"), the answer alone ("score"), and its digits alone ("skeleton"). Of each is
printed how fast it was, how well semantic alignment follows the held-out judge's score (PLCC),
within a prompt how often a candidate that passes has the higher objective (AUC), the pass rate of
the choice, and the share of prompts whose best objective several candidates share, all with
the numbers as written and with the expectation over the digits' probabilities.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from tts_verifier import Verifier, shapes
from tts_verifier.choice.objective import OFFICIAL_WEIGHTS, Objective
from tts_verifier.evaluation import auc
from tts_verifier.log.reader import read_trials
from tts_verifier.types import Draw, Trial, Verdict
from tts_verifier.types.score_names import EXPECTED

MODES = {"diagnose": ("diagnose", False), "score": ("score", False), "skeleton": ("score", True)}
Row = dict[str, Any]


def figures(trials: list[Trial], passed: list[bool], scores: list[float], said: list[Row]) -> Row:
    """Returns the figures of one mode and one way to read its numbers."""
    prompts: dict[str, list[int]] = {}
    for i, trial in enumerate(trials):
        prompts.setdefault(trial.prompt.id, []).append(i)
    goals = [row["objective"] for row in said]
    known = [i for i, row in enumerate(said) if not math.isnan(row["alignment"])]
    pairs = np.array([[said[i]["alignment"], scores[i]] for i in known])
    within, chosen, tied = [], [], []
    for of in prompts.values():
        mine = [goals[i] for i in of]
        within.append(auc(mine, [passed[i] for i in of]))
        best = [i for i in of if goals[i] == max(mine)]
        chosen.append(np.mean([passed[i] for i in best]))
        tied.append(len(best) > 1)
    return {
        "plcc": float(np.corrcoef(pairs.T)[0, 1]),
        "auc_within_prompt": float(np.nanmean(within)),
        "chosen_passes": float(np.mean(chosen)),
        "best_is_shared": float(np.mean(tied)),
        "replies_with_scores": len(known) / len(said),
    }


def numbers(verdicts: list[Verdict], suffix: str) -> list[Row]:
    """Returns alignment and objective of verdicts, from the scores with that suffix."""
    goal = Objective({name + suffix: weight for name, weight in OFFICIAL_WEIGHTS.items()})
    key = "semantic_alignment" + suffix
    return [{"alignment": v.scores[key], "objective": goal(v.scores)} for v in verdicts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=60, help="the first so many")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    whole = [t for t in read_trials(options.run) if isinstance(t.proposal, Draw) and t.image]
    some = set(sorted({t.prompt.id for t in whole})[: options.prompts])
    trials = [t for t in whole if t.prompt.id in some]
    pictures = [t.image.load() for t in trials if t.image]
    captions = [t.prompt.text for t in trials]
    truth = [shapes.judge(*case) for case in zip(pictures, captions, strict=True)]
    passed, scores = [r.passed for r in truth], [r.score for r in truth]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{len(trials)} pictures of {len(some)} prompts, {device}")
    rows = []
    for mode, (detail, skeleton) in MODES.items():
        verifier = Verifier.from_pretrained(options.model, skeleton=skeleton)
        verifier.verify(pictures[:1], captions[:1], detail=detail)
        began = time.perf_counter()
        verdicts = verifier.verify(pictures, captions, detail=detail)
        rate = len(trials) / (time.perf_counter() - began)
        for kind, suffix in (("written", ""), ("expected", EXPECTED)):
            told = figures(trials, passed, scores, numbers(verdicts, suffix))
            rows.append({"mode": mode, "numbers": kind, "images_per_s": rate, **told})
            print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else v
                            for k, v in rows[-1].items()), flush=True)  # fmt: skip
    parquet.write_table(pa.Table.from_pylist([{**row, "device": device} for row in rows]),
                        options.out)  # fmt: skip


if __name__ == "__main__":
    main()
