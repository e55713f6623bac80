"""Measures what the verifier's quick modes lose against `diagnose`, and how often scores tie.

    python examples/benchmarks/score_modes.py runs/bestofn --prompts 60 --out modes.parquet

Verifies the images of a finished best_of_n run on the miniature world again: with reasons and
heatmaps ("diagnose"), with the answer alone ("score"), and with only the answer's digits generated
("skeleton"). For each mode it prints the speed, how well semantic alignment follows the held-out
judge's score (PLCC), how often within a prompt a candidate that passes has the higher objective
(AUC), the pass rate of the choice, and the share of prompts whose best objective several candidates
share; all for the scores as written and for the expectation over the digits' probabilities.
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


def figures(trials: list[Trial], passed: list[bool], scores: list[float], rows: list[Row]) -> Row:
    """Returns the figures of one mode and one way to read its scores."""
    prompts: dict[str, list[int]] = {}
    for i, trial in enumerate(trials):
        prompts.setdefault(trial.prompt.id, []).append(i)
    goals = [row["objective"] for row in rows]
    scored = [i for i, row in enumerate(rows) if not math.isnan(row["alignment"])]
    pairs = np.array([[rows[i]["alignment"], scores[i]] for i in scored])
    within, chosen, tied = [], [], []
    for members in prompts.values():
        member_goals = [goals[i] for i in members]
        within.append(auc(member_goals, [passed[i] for i in members]))
        best = [i for i in members if goals[i] == max(member_goals)]
        chosen.append(np.mean([passed[i] for i in best]))
        tied.append(len(best) > 1)
    return {
        "plcc": float(np.corrcoef(pairs.T)[0, 1]),
        "auc_within_prompt": float(np.nanmean(within)),
        "chosen_passes": float(np.mean(chosen)),
        "best_is_shared": float(np.mean(tied)),
        "replies_with_scores": len(scored) / len(rows),
    }


def numbers(verdicts: list[Verdict], suffix: str) -> list[Row]:
    """Returns alignment and objective of verdicts, from the scores with a suffix."""
    goal = Objective({name + suffix: weight for name, weight in OFFICIAL_WEIGHTS.items()})
    key = "semantic_alignment" + suffix
    return [{"alignment": v.scores[key], "objective": goal(v.scores)} for v in verdicts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=60, help="how many prompts, from the first")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    drawn = [t for t in read_trials(options.run) if isinstance(t.proposal, Draw) and t.image]
    chosen_ids = set(sorted({t.prompt.id for t in drawn})[: options.prompts])
    trials = [t for t in drawn if t.prompt.id in chosen_ids]
    images = [t.image.load() for t in trials if t.image]
    captions = [t.prompt.text for t in trials]
    truth = [shapes.judge(*case) for case in zip(images, captions, strict=True)]
    passed, scores = [r.passed for r in truth], [r.score for r in truth]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{len(trials)} images of {len(chosen_ids)} prompts, {device}")
    rows = []
    for mode, (detail, skeleton) in MODES.items():
        verifier = Verifier.from_pretrained(options.model, answer_template=skeleton)
        verifier.verify(images[:1], captions[:1], detail=detail)
        began = time.perf_counter()
        verdicts = verifier.verify(images, captions, detail=detail)
        rate = len(trials) / (time.perf_counter() - began)
        for kind, suffix in (("written", ""), ("expected", EXPECTED)):
            measured = figures(trials, passed, scores, numbers(verdicts, suffix))
            rows.append({"mode": mode, "numbers": kind, "images_per_s": rate, **measured})
            print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else v
                            for k, v in rows[-1].items()), flush=True)  # fmt: skip
    parquet.write_table(pa.Table.from_pylist([{**row, "device": device} for row in rows]),
                        options.out)  # fmt: skip


if __name__ == "__main__":
    main()
