"""Measures how well a finished run on the miniature world chose, under judge and oracle.

    tts-run bestofn prompts=captions.txt output=runs/held_out
    python examples/benchmarks/run_figures.py runs/held_out --out figures.parquet

Judge and oracle (`tts_verifier.shapes`) read every candidate. For each of the two, the command
prints

- the pass rate of single draws, by category;
- how well the verifier's semantic alignment follows the reader's score (PLCC);
- how often, within a prompt, a passing candidate has the higher objective (AUC);
- the pass rate of a single draw, of the choice and of the best possible choice, and the share
  of that distance that the choice closes (95 % bootstrap over prompts).

The held-out captions of the bundled models are `shapes.captions(312, seed, split="held_out")`.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from tts_verifier import shapes
from tts_verifier.evaluation import auc, plcc
from tts_verifier.shapes.grammar import parse_caption

BOOTSTRAPS = 2000
"""Bootstrap samples of prompts."""


def read_image(case: tuple[Path, str]) -> tuple[bool, float, bool, float]:
    """Reads (image, prompt): judge passed, its score, oracle passed, its score."""
    torch.set_num_threads(1)
    judge, oracle = shapes.judge(*case), shapes.oracle(*case)
    return judge.passed, judge.score, oracle.passed, oracle.score


def share_closed(
    single: np.ndarray, chosen: np.ndarray, best: np.ndarray
) -> tuple[float, float, float]:
    """Returns the share of the distance that is closed, and its interval.

    Args:
        single: (prompts,) pass rate of a single draw.
        chosen: (prompts,) 1 where the choice passes.
        best: (prompts,) 1 where any candidate passes.
    """
    pick = np.random.default_rng(0).integers(len(single), size=(BOOTSTRAPS, len(single)))
    gain, most = (chosen - single)[pick].mean(1), (best - single)[pick].mean(1)
    low, high = np.percentile(gain / most, [2.5, 97.5])
    share = (chosen.mean() - single.mean()) / (best.mean() - single.mean())
    return float(share), float(low), float(high)


def report(table: pd.DataFrame, name: str) -> None:
    """Prints the figures under one reader, `judge` or `oracle`."""
    print(f"{name}:")
    for category, part in table.groupby("category"):
        print(f"  {category:18s} {part[name].mean():6.1%} of {len(part)} single draws pass")
    rates = table.groupby("category")[name].mean()
    print(f"  {'mean of categories':18s} {rates.mean():6.1%}")
    scored = table.dropna(subset="semantic_alignment")
    agreement = plcc(scored.semantic_alignment, scored[f"{name}_score"])
    print(f"  PLCC of semantic alignment with its score {agreement:.3f}")
    prompts = [part for _, part in table.groupby("prompt_id")]
    aucs = [auc(p.objective, p[name]) for p in prompts if p[name].nunique() == 2]
    print(f"  AUC within a prompt {np.mean(aucs):.3f} ({len(aucs)} prompts with both)")
    rows = [(p[name].mean(), p[name][p.chosen].sum(), p[name].max()) for p in prompts]
    single, chosen, best = np.array(rows, dtype=float).T
    share, low, high = share_closed(single, chosen, best)
    print(f"  single {single.mean():.1%} -> chosen {chosen.mean():.1%} of {best.mean():.1%}")
    print(f"  share of that distance closed {share:.1%} [{low:.1%}, {high:.1%}]", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    table = pd.read_parquet(options.run / "trials.parquet")
    cases = [(options.run / i, p) for i, p in zip(table.image_path, table.prompt, strict=True)]
    with ProcessPoolExecutor(options.workers) as pool:
        columns = zip(*pool.map(read_image, cases, chunksize=16), strict=True)
    for column in ("judge", "judge_score", "oracle", "oracle_score"):
        table[column] = next(columns)
    table["category"] = [parse_caption(prompt).category for prompt in table.prompt]
    whole = table.semantic_alignment.notna().mean()
    agree = (table.judge == table.oracle).mean()
    print(
        f"{len(table)} candidates, {whole:.2%} with a score; judge and oracle agree on {agree:.2%}"
    )
    for name in ("judge", "oracle"):
        report(table, name)
    table.to_parquet(options.out)


if __name__ == "__main__":
    main()
