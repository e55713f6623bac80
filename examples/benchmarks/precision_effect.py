"""Measures what fp8 changes: the order of candidates, the choices, and the seconds.

    python examples/benchmarks/precision_effect.py --captions 60 --out effect.parquet
    python examples/benchmarks/precision_effect.py --released-size     # random weights, a GPU

The bundled verifier scores 16 images of each caption of the miniature world in the dtype of the
device and in fp8. The output says how well the two orders of a caption's candidates agree
(Kendall's tau), for how many captions the best of 16 is another, and how many images a second each
verifies. With --released-size the model has the released size and random weights, whose digits
are nearly a matter of chance: that is the hardest case for agreement.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batch_effect import CANDIDATES, FINE, candidates
from numpy.typing import NDArray
from scipy.stats import kendalltau
from verifier_bench import Bench, write

from tts_verifier import Objective, Verifier
from tts_verifier.types import Verdict
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine
from tts_verifier.verifiers.imagedoctor.model.quantise import quantise_model
from tts_verifier.verifiers.imagedoctor.requests import ForcedStep, GenerationLimits

RUNS = 3


def compare(before: NDArray[Any], after: NDArray[Any]) -> dict[str, float]:
    """Returns how two scores of the same candidates agree, (prompts, candidates) each."""
    taus = [kendalltau(one, other).statistic for one, other in zip(before, after, strict=True)]
    changed = before.argmax(1) != after.argmax(1)
    # A candidate that the first score puts level with its best is as good a choice.
    lost = before.max(1) - before[np.arange(len(before)), after.argmax(1)]
    return {
        "kendall": float(np.nanmean(taus)),
        "choices_that_change": float(changed.mean()),
        "choices_that_the_other_rates_lower": float((lost > 0).mean()),
        "rating_lost_mean": float(lost.mean()),
    }


def timed(run: Callable[[], list[Verdict]]) -> tuple[float, list[Verdict]]:
    """Returns the median seconds of `RUNS` runs after one that warms up, and the result."""
    result, seconds = run(), []
    for _ in range(RUNS):
        began = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[RUNS // 2], result


def miniature(captions: int, device: str) -> list[dict[str, Any]]:
    """Compares the bundled verifier with itself in fp8."""
    pairs = candidates(captions)
    images, texts = [image for _, image in pairs], [caption for caption, _ in pairs]
    rows = []
    for detail in ("diagnose", "score"):
        ratings: list[dict[str, NDArray[Any]]] = []
        for precision in (None, "fp8"):
            verifier = Verifier.from_pretrained(
                "shapes", device=device, precision=precision, answer_template=detail == "score"
            )
            seconds, verdicts = timed(lambda: verifier.verify(images, texts, detail=detail))  # noqa: B023
            ratings.append(
                {
                    name: np.array([objective(v.scores) for v in verdicts]).reshape(-1, CANDIDATES)
                    for name, objective in (("written", Objective()), ("expected", FINE))
                }
            )
            rows.append(
                {
                    "model": "bundled",
                    "detail": detail,
                    "precision": precision or verifier.settings["dtype"],
                    "pictures": len(images),
                    "images_per_s": len(images) / seconds,
                }
            )
        for name, before in ratings[0].items():
            rows[-1] |= {f"{name}_{k}": v for k, v in compare(before, ratings[1][name]).items()}
    return rows


def released_size(prompts: int) -> list[dict[str, Any]]:
    """Compares random weights of the released size: the expected value of two digits."""
    bench = Bench("cuda", images=prompts * CANDIDATES, tokens=2)
    digits = tuple(range(10))
    limits = GenerationLimits(
        2, (), watched_groups=(digits,), forced_steps=(ForcedStep(digits), ForcedStep(digits))
    )
    ratings = []
    for precision in (None, "fp8"):
        if precision == "fp8":
            quantise_model(bench.model)
        replies = dict(Engine(bench.model, limits).replies(bench.requests))
        probs = np.stack([replies[i].probs for i in range(len(bench.requests))])
        ratings.append((probs @ np.arange(10) @ [0.1, 0.01]).reshape(-1, CANDIDATES))
    row = {"model": "released size, random", "precision": "fp8", "pictures": bench.images}
    return [row | compare(*ratings)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rows, and writes them with --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=60)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--released-size", action="store_true")
    parser.add_argument("--out", type=Path, help="a Parquet file")
    args = parser.parse_args(arguments)
    if args.released_size:
        rows = released_size(args.captions)
    else:
        rows = miniature(args.captions, args.device)
    for row in rows:
        print(json.dumps(row), flush=True)
    if args.out:
        write(rows, args.out)


if __name__ == "__main__":
    main()
