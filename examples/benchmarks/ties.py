"""How often a comparison of two near ties agrees with the judge of the miniature world.

    python examples/benchmarks/ties.py runs/ties --captions 300 --n 8
    python examples/benchmarks/ties.py runs/ties_simulated --captions 60 --n 8 --simulated

Draws n images for every held-out caption (by the bundled generator, or by the simulated one) and
verifies them. Pairs of a caption whose objectives differ by at most 0.02, 0.05 and 0.1 are compared
where the judge is not undecided: one passes and the other does not, or its scores differ.
`Verifier.compare` answers in both orders, as in a run with `ties`. The share that agrees has
Wilson's 95 % interval; pairs of one caption are not independent, so the captions are counted too.
The objective's own order of the same pairs stands beside it. The run folder is continued.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch

from tts_verifier import Verifier, shapes
from tts_verifier.choice import wilson
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.interfaces import Generator
from tts_verifier.runner import run
from tts_verifier.shapes.simulated import SimulatedGenerator
from tts_verifier.shapes.verifiers import JudgeVerifier
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.types import Prompt, Trial

SEED = 5_000_111
"""Other captions than those by which the weights of `choice.views` were chosen."""
NEAR = (0.02, 0.05, 0.1)
"""Differences of the objectives, at most."""
AT_ONCE = 16
"""Pairs that are compared in one call."""
Pair = tuple[Trial, Trial]


def near_pairs(trials: Sequence[Trial], near: float) -> list[Pair]:
    """Returns the pairs of one caption that nearly tie and on which the judge is decided."""
    return [
        (one, other)
        for one, other in combinations(trials, 2)
        if abs(one.objective - other.objective) <= near and judged(one, other)
    ]


def judged(one: Trial, other: Trial) -> float:
    """Returns a positive number if the judge prefers the first, 0 if it is undecided."""
    gaps = [one.judge[name] - other.judge[name] for name in ("passed", "score")]
    return next((gap for gap in gaps if abs(gap) > 1e-9), 0.0)


def preferences(verifier: Verifier, pairs: Sequence[Pair]) -> tuple[list[float], float]:
    """Returns how far the first image of each pair is preferred, and the seconds of a pair."""
    values: list[float] = []
    began = time.perf_counter()
    for start in range(0, len(pairs), AT_ONCE):
        part = pairs[start : start + AT_ONCE]
        ones, others = ([pair[i].image.load() for pair in part] for i in (0, 1))
        prompts = [one.prompt.text for one, _ in part]
        there = verifier.compare([*ones, *others], [*others, *ones], prompts * 2)
        scores = [verdict.scores["preferred"] for verdict in there]
        back = scores[len(part) :]
        values += [(a + 1 - b) / 2 for a, b in zip(scores, back, strict=False)]
    return values, (time.perf_counter() - began) / max(len(pairs), 1)


def share(agree: Sequence[bool]) -> str:
    """Returns a share with its interval."""
    low, high = wilson(sum(agree), len(agree))
    return f"{sum(agree) / len(agree):.1%} [{low:.1%}, {high:.1%}]"


def report(verifier: Verifier, by_caption: Sequence[Sequence[Trial]]) -> None:
    """Prints a line for each difference of the objectives."""
    # The pairs of a small difference are among those of a large one: all are compared once.
    pairs = [pair for trials in by_caption for pair in near_pairs(trials, NEAR[-1])]
    values, seconds = preferences(verifier, pairs)
    print(f"{len(pairs)} pairs, {seconds:.2f} s each, in both orders")
    for near in NEAR:
        some = [
            (pair, value)
            for pair, value in zip(pairs, values, strict=True)
            if abs(pair[0].objective - pair[1].objective) <= near
        ]
        if not some:
            continue
        compared = [(value > 0.5) == (judged(*pair) > 0) for pair, value in some]
        own = [(a.objective > b.objective) == (judged(a, b) > 0) for (a, b), _ in some]
        captions = len({pair[0].prompt.id for pair, _ in some})
        print(
            f"within {near}: {len(some)} pairs of {captions} captions; "
            f"comparison {share(compared)}, objective alone {share(own)}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--captions", type=int, default=300)
    parser.add_argument("--n", type=int, default=8, help="images of a caption")
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="images at a time; default by device")
    options = parser.parse_args()
    batch = options.batch or (128 if options.device == "cuda" else 8)
    texts = shapes.captions(options.captions, SEED, split="held_out")
    prompts = [Prompt(f"{i:04}", text) for i, text in enumerate(texts)]
    generator: Generator = (
        SimulatedGenerator(batch_size=batch)
        if options.simulated
        else DiffusersGenerator("shapes", device=options.device, batch_size=batch)
    )
    verifier = Verifier.from_pretrained("shapes", device=options.device, batch_size=batch)
    result = run(
        prompts, generator, verifier, BestOfN(options.n), judge=JudgeVerifier(), folder=options.out
    )
    by_caption: dict[str, list[Trial]] = {}
    for trial in result.trials:
        if trial.finished and trial.judge:
            by_caption.setdefault(trial.prompt.id, []).append(trial)
    report(verifier, [*by_caption.values()])


if __name__ == "__main__":
    main()
