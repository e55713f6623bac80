"""How near drafts come to the images of the same seeds, in fewer steps and with a cache.

    python examples/benchmarks/draft_fidelity.py --captions 48 --n 4
    python examples/benchmarks/draft_fidelity.py --captions 300 --n 8 --device cuda --batch 128

Held-out captions of the miniature world. A row is a kind of draft: its network evaluations and
seconds, how far its pixels are from the image of the same seed (root mean square, in [0, 1]), how
often both pass or both fail by the judge, and how well the verifier's objective orders a caption's
drafts as it orders their images (Spearman, the mean over captions). Intervals are 95 % bootstraps
over captions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import rankdata

from tts_verifier import Verifier, shapes
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.types import Draw, Job, Prompt, Sample

SEED = 5_000_321
"""Other captions than those of the frontier."""
KINDS = {
    "image": {},
    "steps 0.5": {"pace": 0.5},
    "cached 0.5": {"pace": 0.5, "cached": True},
    "steps 0.35": {"pace": 0.35},
    "cached 0.35": {"pace": 0.35, "cached": True},
}


def interval(values: Sequence[float], digits: int) -> str:
    """Returns a mean with its interval."""
    known = np.array([value for value in values if np.isfinite(value)])
    rng = np.random.default_rng(0)
    means = known[rng.integers(len(known), size=(2000, len(known)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{known.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def agreement(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns Spearman's correlation, NaN where all are equal."""
    if len(set(one)) == 1 or len(set(other)) == 1:
        return float("nan")
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def pixels(sample: Sample) -> np.ndarray:
    """Returns the pixels of an image, in [0, 1]."""
    return np.asarray(sample.image, dtype=float) / 255


def main() -> None:
    """Prints a row for each kind of draft."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=48)
    parser.add_argument("--n", type=int, default=4, help="images of a caption")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    texts = shapes.captions(options.captions, SEED, split="held_out")
    generator = DiffusersGenerator("shapes", device=options.device, batch_size=options.batch)
    verifier = Verifier.from_pretrained("shapes", device=options.device, heatmaps=False)
    prompts = [Prompt(f"{i:04}", text) for i, text in enumerate(texts) for _ in range(options.n)]
    groups = np.arange(len(prompts)).reshape(-1, options.n)
    whole: list[Sample] = []
    first: tuple[list[bool], list[float]] = ([], [])
    for name, how in KINDS.items():
        jobs = [Job(prompt, Draw(i, **how)) for i, prompt in enumerate(prompts)]
        generator.generate(jobs[: options.batch])
        began = time.perf_counter()
        samples = generator.generate(jobs)
        seconds = (time.perf_counter() - began) / len(jobs)
        images = [sample.image for sample in samples]
        verdicts = verifier.verify(images, [p.text for p in prompts], detail="score")
        values = [verifier.objective(verdict.scores) for verdict in verdicts]
        passed = [shapes.judge(i, p.text).passed for i, p in zip(images, prompts, strict=True)]
        whole, first = whole or samples, first if whole else (passed, values)
        pairs = zip(map(pixels, samples), map(pixels, whole), strict=True)
        far = [((one - other) ** 2).mean() ** 0.5 for one, other in pairs]
        same = [a == b for a, b in zip(passed, first[0], strict=True)]
        ranks = [agreement([values[i] for i in g], [first[1][i] for i in g]) for g in groups]
        by_caption = [[np.mean([row[i] for i in g]) for g in groups] for row in (far, same, passed)]
        print(
            f"{name:12s} {samples[0].cost.network_evaluations:3d} evaluations, {seconds:.3f} s; "
            f"distance {interval(by_caption[0], 4)}, same outcome {interval(by_caption[1], 3)}, "
            f"order {interval(ranks, 2)}, pass {interval(by_caption[2], 3)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
