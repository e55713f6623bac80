"""Times the twelve rewards of 512 replies (64 prompts x 8): seconds of one core, best of 25.

    OMP_NUM_THREADS=1 python examples/benchmarks/reward_times.py

Half of the misalignment maps are empty and every reply has zero to four boxes, as in the miniature
world. `--side` is that of the maps: 112 for the bundled verifier, 288 for the released one.
`--unshared` gives each reply a truth of its own, the worst case.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tts_verifier.training.grpo.rewards import REWARDS, total_rewards

PROMPTS, GROUP = 64, 8


def batch(side: int, shared: bool) -> tuple[list[str], dict[str, list[Any]]]:
    source = np.random.default_rng(0)
    count = PROMPTS * GROUP
    given: dict[str, list[Any]] = {"scores": []}
    for _ in range(PROMPTS):
        given["scores"] += [source.random(4).tolist()] * GROUP
    for kind, marked in (("misalignment", 0.5), ("artifact", 1.0)):
        made = PROMPTS if shared else count
        truths = [blobs(source, side) * (source.random() < marked) for _ in range(made)]
        given[f"{kind}_map"] = [truths[i // GROUP if shared else i] for i in range(count)]
        given[f"predicted_{kind}"] = list(torch.rand(count, side, side))
    return [reply(source) for _ in range(count)], given


def blobs(source: np.random.Generator, side: int) -> np.ndarray:
    grid = np.zeros((side, side), np.float32)
    for y, x in source.integers(0, side * 3 // 4, (3, 2)):
        grid[y : y + side // 5, x : x + side // 5] = source.random()
    return grid


def reply(source: np.random.Generator) -> str:
    corners = source.integers(0, 256, (source.integers(0, 5), 4))
    boxes = ";\n".join(f"{i}.[{x},{y},{x + w},{y + h}]" for i, (x, y, w, h) in enumerate(corners))
    a, b, c, d = source.random(4).round(2)
    return (
        f"<think>{'The ring should be red, and is blue. ' * 8}Proposed regions (xyxy): {boxes}"
        f"</think>\n<answer>Semantic Alignment score: {a}; Misalignment Locations: ; Aesthetic "
        f"score: {b}; Plausibility score: {c}; Artifact Locations: ; Overall Impression score: {d}"
        "</answer>"
    )


def best(function: Callable[[], object], repeats: int = 25) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, nargs="+", default=[112, 288])
    parser.add_argument("--unshared", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for side in options.side:
        texts, given = batch(side, not options.unshared)
        seconds = best(lambda t=texts, g=given: total_rewards(None, t, **g))
        print(f"maps of {side} x {side}: all twelve of {len(texts)} replies {seconds * 1e3:.0f} ms")
        for name, function in REWARDS.items():
            single = best(lambda f=function, t=texts, g=given: f(None, t, **g), 3)
            print(f"  {name} {single * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
