"""The figures of `richhf_ablation.py`: a table of its rows, and differences with their intervals.

An interval is the middle 95 % of bootstrap samples. A sample draws pictures with replacement, the
same ones for both rows and all seeds, and as many seeds as there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet

from tts_verifier import Verifier
from tts_verifier.evaluation.evaluate import evaluate
from tts_verifier.evaluation.metrics import srcc
from tts_verifier.evaluation.rated import ASPECTS, MARKED_MAPS, RatedPicture
from tts_verifier.training.grpo.rewards import GROUNDING_REWARDS, total_rewards
from tts_verifier.training.grpo.rewards.completions import read_boxes
from tts_verifier.types import Detail

Reals = NDArray[np.float64]
Columns = dict[str, Reals]
"""Column -> (pictures,), NaN = missing."""

SAMPLES = 2000
PUBLISHED = {
    "stage-1": (0.660, 0.656, None, None),
    "stage-1-maps": (0.655, 0.650, 0.532, 0.165),
    "stage-2": (0.720, 0.707, 0.558, 0.224),
    "no-look": (0.714, 0.705, 0.534, 0.160),
    "no-think": (0.708, 0.698, 0.542, 0.190),
    "grpo": (0.741, 0.724, 0.571, 0.225),
    "grpo-no-grounding": (0.734, 0.718, 0.566, 0.225),
}
"""Row -> PLCC, SRCC, CC of both maps on RichHF-18K (arXiv 2510.01010)."""
COMPARED = (
    ("stage-2", "stage-1"),
    ("grpo", "stage-2"),
    ("grpo", "more-stage-2"),
    ("more-stage-2", "stage-2"),
    ("grpo", "grpo-no-grounding"),
    ("grpo-no-grounding", "stage-2"),
    ("stage-2", "no-look"),
    ("stage-2", "no-think"),
)


def judge(
    verifier: Verifier, pictures: Sequence[RatedPicture], detail: Detail, threads: int
) -> list[dict[str, Any]]:
    """Returns what a verifier says of each picture, beside its ratings, and what its boxes earn."""
    few = -(-len(pictures) // threads)
    parts = [pictures[i : i + few] for i in range(0, len(pictures), few)]
    # Comparing two maps of 384 x 384 takes longer than making them.
    with ThreadPoolExecutor(threads) as pool:
        done = pool.map(partial(evaluate, verifier, detail=detail), parts)
        judged = [picture for part in done for picture in part]
    replies = [picture.reply for picture in judged]
    maps = {
        f"{name}_map": [p.picture.maps[name].astype(np.float32) / 255 for p in judged]
        for name in MARKED_MAPS
    }
    earned = dict(total_rewards(None, replies, names=GROUNDING_REWARDS, **maps).terms)
    earned["boxes"] = read_boxes(replies).counts.astype(np.float64)
    if detail == "score":  # such replies have no regions
        earned = {name: np.full(len(judged), np.nan) for name in earned}
    return [
        picture.as_row() | {name: float(values[i]) for name, values in earned.items()}
        for i, picture in enumerate(judged)
    ]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows whose columns may differ, whole or not at all."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    draft = path.with_suffix(".draft")
    parquet.write_table(table, draft, compression="zstd")
    draft.replace(path)


def weighted_plcc(predicted: Reals, rated: Reals, weights: Reals) -> Reals:
    """Returns the PLCC of pictures that count several times, for each row of weights.

    Args:
        predicted: (N,), NaN = missing, which does not count.
        rated: (N,).
        weights: (B, N).
    """
    given = np.isfinite(predicted)
    counted, p, t = weights[:, given], predicted[given], rated[given]
    total = counted.sum(1)
    mean_p, mean_t = counted @ p / total, counted @ t / total
    covariance = counted @ (p * t) / total - mean_p * mean_t
    spread = (counted @ (p * p) / total - mean_p**2) * (counted @ (t * t) / total - mean_t**2)
    found: Reals = covariance / np.sqrt(np.maximum(spread, 1e-30))
    return found


def weighted_mean(values: Reals, weights: Reals) -> Reals:
    """Returns the mean of what is not NaN, for each row of weights; NaN if nothing is left."""
    given = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        found: Reals = weights[:, given] @ values[given] / weights[:, given].sum(1)
    return found


def mean_plcc(columns: Columns, weights: Reals) -> Reals:
    """Returns the mean PLCC of the four scores."""
    each = [weighted_plcc(columns[a], columns[f"rated_{a}"], weights) for a in ASPECTS]
    found: Reals = np.mean(each, axis=0)
    return found


def of_column(name: str) -> Callable[[Columns, Reals], Reals]:
    """Returns the figure that is the mean of a column."""
    return lambda columns, weights: weighted_mean(columns[name], weights)


def of_boxes(ending: str) -> Callable[[Columns, Reals], Reals]:
    """Returns the figure that is the mean of a reward of boxes over both maps."""
    names = [name for name in GROUNDING_REWARDS if name.endswith(ending)]
    return lambda columns, weights: np.mean(
        [weighted_mean(columns[name], weights) for name in names], axis=0
    )


FIGURES: dict[str, Callable[[Columns, Reals], Reals]] = {
    "PLCC": mean_plcc,
    **{f"PLCC {a}": lambda c, w, a=a: weighted_plcc(c[a], c[f"rated_{a}"], w) for a in ASPECTS},
    **{f"CC {name}": of_column(f"{name}_cc") for name in MARKED_MAPS},
    "boxes": of_column("boxes"),
    "uniqueness": of_boxes("_iou"),
    "compactness": of_boxes("_avepixel"),
    "coverage": of_boxes("_union"),
}


def read_figures(folder: Path) -> dict[str, dict[int, Columns]]:
    """Returns row -> seed -> columns, of pictures in the order of their names."""
    found: dict[str, dict[int, Columns]] = {}
    for path in sorted(folder.rglob("pictures-*.parquet")):
        by_row: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for line in sorted(parquet.read_table(path).to_pylist(), key=lambda line: line["picture"]):
            by_row.setdefault((line["row"], line["seed"]), []).append(line)
        for (row, seed), lines in by_row.items():
            numbers = {k for k, v in lines[0].items() if not isinstance(v, str)}
            columns = {
                name: np.array([line[name] for line in lines], np.float64) for name in numbers
            }
            found.setdefault(row, {})[seed] = columns
    order = ["start", *PUBLISHED]
    return dict(sorted(found.items(), key=lambda p: order.index(p[0]) if p[0] in order else 99))


def seconds_of(folder: Path) -> dict[str, float]:
    """Returns the mean seconds that the steps of a row took."""
    spent: dict[str, dict[int, float]] = {}
    for path in sorted(folder.rglob("steps-*.parquet")):
        for step in parquet.read_table(path, columns=["row", "seed", "seconds"]).to_pylist():
            of_row = spent.setdefault(step["row"], {})
            of_row[step["seed"]] = of_row.get(step["seed"], 0.0) + step["seconds"]
    return {row: float(np.mean([*seeds.values()])) for row, seeds in spent.items()}


def difference(
    one: dict[int, Columns], other: dict[int, Columns], figure: Callable[[Columns, Reals], Reals]
) -> tuple[float, float, float]:
    """Returns how much higher a figure of one row is, and the interval of that."""
    rng, seeds = np.random.default_rng(0), sorted(one.keys() & other.keys())
    count = len(one[seeds[0]]["boxes"])
    drawn = rng.multinomial(count, np.full(count, 1 / count), SAMPLES)
    weights = np.concatenate([np.ones((1, count)), drawn])  # the first is the data set itself
    gains = np.stack([figure(one[s], weights) - figure(other[s], weights) for s in seeds])
    chosen = rng.integers(0, len(seeds), (len(seeds), SAMPLES))
    samples = np.take_along_axis(gains[:, 1:], chosen, 0).mean(0)
    low, high = (
        np.nanpercentile(samples, (2.5, 97.5)) if np.isfinite(samples).any() else (np.nan,) * 2
    )
    return float(gains[:, 0].mean()), float(low), float(high)


def print_figures(folder: Path) -> None:
    """Prints both tables in Markdown."""
    found, seconds = read_figures(folder), seconds_of(folder)
    if not found:
        print(f"No row is measured yet: {folder} has no pictures-*.parquet.")
        return
    shown = [name for name in FIGURES if not name.startswith("PLCC ")]
    pictures = len(next(iter(next(iter(found.values())).values()))["boxes"])
    print(f"\n{pictures} held-out pictures, means over seeds; published: PLCC / SRCC / CC / CC\n")
    print("| row | seeds | s | SRCC |", " | ".join(shown), "| published |")
    print("|---" * (len(shown) + 5) + "|")
    for row, seeds in found.items():
        ones = np.ones((1, pictures))
        values = [np.mean([FIGURES[name](c, ones)[0] for c in seeds.values()]) for name in shown]
        ranks = np.mean([mean_srcc(columns) for columns in seeds.values()])
        papers = " / ".join("–" if v is None else f"{v:.3f}" for v in PUBLISHED.get(row, ()))
        cells = " | ".join(_number(value) for value in (ranks, *values))
        print(f"| {row} | {len(seeds)} | {seconds.get(row, 0):.0f} | {cells} | {papers} |")
    print("\n| difference |", " | ".join(FIGURES), "|")
    print("|---" * (len(FIGURES) + 1) + "|")
    for one, other in compared(found):
        gains = [difference(found[one], found[other], figure) for figure in FIGURES.values()]
        cells = [f"{_number(d, '+')} [{_number(a, '+')}, {_number(b, '+')}]" for d, a, b in gains]
        print(f"| {one} − {other} |", " | ".join(cells), "|")


def compared(found: dict[str, dict[int, Columns]]) -> list[tuple[str, str]]:
    """Returns the pairs of rows that share a seed; added rows are compared as `grpo` is."""
    added = [row for row in found if row not in {"start", "more-stage-2", *PUBLISHED}]
    pairs = [*COMPARED, *((row, other) for row in added for other in ("stage-2", "more-stage-2"))]
    return [
        (a, b) for a, b in pairs if a in found and b in found and found[a].keys() & found[b].keys()
    ]


def mean_srcc(columns: Columns) -> float:
    """Returns the mean SRCC of the four scores."""
    given = {a: np.isfinite(columns[a]) for a in ASPECTS}
    return float(np.mean([srcc(columns[a][g], columns[f"rated_{a}"][g]) for a, g in given.items()]))


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if np.isfinite(value) else "–"
