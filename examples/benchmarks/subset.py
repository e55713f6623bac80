"""Sets of k of n images: what diversity costs in quality, on the miniature world.

    python examples/benchmarks/subset.py --captions 60

For every held-out caption the simulated generator draws n images and the oracle scores them. A set
of k is chosen at several weights of diversity. The judge, which the choice does not see, says how
many images of a set pass; the spread is the mean absolute difference of the pixels of its pairs at
32 x 32, in [0, 1], which the choice does not see either. Intervals are 95 % bootstraps over
captions.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from PIL import Image

from tts_verifier import BestOfN, run, shapes
from tts_verifier.analysis.expected_best import estimate
from tts_verifier.shapes.simulated import SimulatedGenerator
from tts_verifier.shapes.verifiers import JudgeVerifier, OracleVerifier

SEED = 7_000_003
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def spread(images: list[Image.Image]) -> float:
    """Returns the mean difference of the pairs."""
    small = [np.asarray(image.resize((32, 32)), float) / 255 for image in images]
    return float(np.mean([np.abs(a - b).mean() for a, b in itertools.combinations(small, 2)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=60)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--k", type=int, default=4)
    options = parser.parse_args()
    captions = shapes.captions(options.captions, SEED, split="held_out")
    result = run(
        captions, SimulatedGenerator(), OracleVerifier(), BestOfN(options.n), judge=JudgeVerifier()
    )
    print("| diversity | images of a set that pass [95 %] | spread [95 %] |\n|---|---|---|")
    for weight in WEIGHTS:
        rows = []
        for trials in result.subsets(options.k, diversity=weight).values():
            if len(trials) == options.k:
                images = [t.image.load() for t in trials if t.image]
                rows.append([np.mean([t.judge["passed"] for t in trials]), spread(images)])
        passed, far = estimate(np.array(rows))
        print(
            f"| {weight} | {passed.mean:.1%} [{passed.low:.1%}, {passed.high:.1%}] | "
            f"{far.mean:.4f} [{far.low:.4f}, {far.high:.4f}] |"
        )


if __name__ == "__main__":
    main()
