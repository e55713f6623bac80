"""Says which PLCC perfect verifiers reach on the miniature RichHF, whose raters err.

    python examples/benchmarks/rating_ceiling.py runs/miniature-richhf --split test_more

Every picture is rated again and again. A verifier may answer the truth, the mean or the median of
these ratings, what it finds by always writing the likeliest digit, or one rating: what it says when
it has learned the ratings by heart, noise included. GRPO rewards the median.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tts_verifier.evaluation import plcc
from tts_verifier.evaluation.rated import ASPECTS
from tts_verifier.training.richhf.miniature import read_truths
from tts_verifier.training.richhf.raters import RaterPanel

PREFIXES = (2, 3, 4)
"""Characters of "0.58" after each of its tokens."""


def likeliest_digits(ratings: Sequence[float]) -> float:
    """Writes the likeliest first token of the ratings, then the likeliest one after it."""
    texts = [f"{rating:.2f}" for rating in ratings]
    for length in PREFIXES:
        start = Counter(text[:length] for text in texts).most_common(1)[0][0]
        texts = [text for text in texts if text.startswith(start)]
    return float(texts[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--ratings", type=int, default=300, help="of each picture")
    options = parser.parse_args()
    truths = [truth.scores for truth in read_truths(options.data, options.split).values()]
    panel = RaterPanel(0, 0)
    rated = np.array(
        [
            [[*map(panel.scores(truth).get, ASPECTS)] for truth in truths]
            for _ in range(options.ratings + 2)
        ]
    )
    people, one, many = rated[0], rated[1], rated[2:]
    digits = [[likeliest_digits(many[:, i, a]) for a in range(4)] for i in range(len(truths))]
    verifiers = {
        "the truth": np.array([[truth[aspect] for aspect in ASPECTS] for truth in truths]),
        "mean of the ratings": many.mean(0),
        "median of the ratings": np.median(many, 0),
        "likeliest digits": np.array(digits),
        "one rating": one,
    }
    print("| verifier |", " | ".join(ASPECTS), "| mean |")
    print("|---" * (len(ASPECTS) + 2) + "|")
    for name, said in verifiers.items():
        found = [plcc(said[:, a], people[:, a]) for a in range(len(ASPECTS))]
        print(f"| {name} |", " | ".join(f"{v:.3f}" for v in (*found, np.mean(found))), "|")


if __name__ == "__main__":
    main()
