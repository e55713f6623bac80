"""Says how well a finished run on the miniature world chose, under judge and oracle.

    tts-run bestofn prompts=captions.txt output=runs/held_out
    python examples/benchmarks/run_figures.py runs/held_out --out figures.parquet

Every candidate is read again by both (`tts_verifier.shapes`), then printed for each of them:
pass rates of single draws by category; how well the verifier's semantic alignment follows
their score (PLCC); within a prompt, how often a candidate that passes has the higher objective
(AUC); and the pass rate of a single draw, of the choice and of the best possible, with the
share of that distance that the choice closes (95 % bootstrap over prompts). The held-out
captions of the bundled models: `shapes.captions(312, seed, split="held_out")`.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from tts_verifier import shapes
from tts_verifier.evaluation import auc
from tts_verifier.shapes.grammar import parse_caption

DRAWS = 2000
"""Bootstrap draws of prompts."""


def read(case: tuple[Path, str]) -> tuple[bool, float, bool, float]:
    """Reads a picture: judge passed, its score, oracle passed, its score."""
    torch.set_num_threads(1)
    judge, oracle = shapes.judge(*case), shapes.oracle(*case)
    return judge.passed, judge.score, oracle.passed, oracle.score


def closed(single: np.ndarray, chosen: np.ndarray, best: np.ndarray) -> tuple[float, float, float]:
    """Returns the share of the distance closed and its interval; one entry a prompt each."""
    pick = np.random.default_rng(0).integers(len(single), size=(DRAWS, len(single)))
    gain, most = (chosen - single)[pick].mean(1), (best - single)[pick].mean(1)
    low, high = np.percentile(gain / most, [2.5, 97.5])
    share = (chosen.mean() - single.mean()) / (best.mean() - single.mean())
    return float(share), float(low), float(high)


def report(table: pd.DataFrame, name: str) -> None:
    """Prints the figures under one reader."""
    print(f"{name}:")
    for category, of in table.groupby("category"):
        print(f"  {category:18s} {of[name].mean():6.1%} of {len(of)} single draws pass")
    rates = table.groupby("category")[name].mean()
    print(f"  {'mean of categories':18s} {rates.mean():6.1%}")
    said = table.dropna(subset="semantic_alignment")
    plcc = np.corrcoef(said.semantic_alignment, said[f"{name}_score"])[0, 1]
    print(f"  PLCC of semantic alignment with its score {plcc:.3f}")
    prompts = [of for _, of in table.groupby("prompt_id")]
    mixed = [auc(of.objective, of[name]) for of in prompts if of[name].nunique() == 2]
    print(f"  AUC within a prompt {np.mean(mixed):.3f} ({len(mixed)} prompts with both)")
    rows = [(of[name].mean(), of[name][of.chosen].sum(), of[name].max()) for of in prompts]
    single, chosen, best = np.array(rows, dtype=float).T
    share, low, high = closed(single, chosen, best)
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
        columns = zip(*pool.map(read, cases, chunksize=16), strict=True)
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
