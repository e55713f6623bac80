"""Compares finished cases of `frontier.py` with the best of n at equal cost: tables and charts.

`frontier.py` calls `tables`, and says what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from tts_verifier.analysis.expected_best import expected_best
from tts_verifier.analysis.svg import Chart, Series, line_chart, standalone_svg

BUDGETS = (2, 4, 8, 16, 32)
BOOTSTRAPS = 2000
"""Bootstrap samples of captions."""
LOOKS = "looks_"
"""Begins the name of a case in two tiers."""
TIERS = (
    "tiers_gain", "tiers_gain_low", "tiers_gain_high", "tiers_seconds", "tiers_verify_seconds",
)  # fmt: skip
"""Columns that compare a case in two tiers with the same strategy in one; NaN for other cases."""
MEASURES = ("judge", "oracle", "objective")
Row = dict[str, Any]


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Writes rows as Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(list(rows)), path)


class Pool:
    """The expected measures of the best of every n for each caption, and the cost of n.

    Args:
        rows: of the pool, a row a drawing.
        live: of the largest `best_of_n@`, whose seconds are used if it is there.
    """

    def __init__(self, rows: Sequence[Row], live: Sequence[Row] = ()) -> None:
        by_prompt: dict[str, list[Row]] = {}
        for row in rows:
            by_prompt.setdefault(row["prompt"], []).append(row)
        self.curves = {
            prompt: {
                name: expected_best(column(drawings, "objective"), column(drawings, name))
                for name in MEASURES
            }
            for prompt, drawings in by_prompt.items()
        }
        self.evaluations = float(column(rows, "evaluations").mean())
        timed = live or rows
        seconds = column(timed, "draw_seconds") + column(timed, "judge_seconds")
        self.seconds = float(seconds.sum() / column(timed, "verifier_calls").sum())

    def at(self, prompt: str, name: str, n: float) -> float:
        """Returns a measure of the best of n; n need not be whole."""
        curve = self.curves[prompt][name]
        return float(np.interp(n, np.arange(1, len(curve) + 1), curve))


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """Returns one column."""
    return np.array([row[name] for row in rows], dtype=float)


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Returns the mean and its 95 % bootstrap interval over captions."""
    rng = np.random.default_rng(0)
    pick = rng.integers(len(differences), size=(BOOTSTRAPS, len(differences)))
    low, high = np.percentile(differences[pick].mean(1), [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)


def compare(rows: Sequence[Row], pool: Pool) -> Row:
    """Compares a case with the best of n at its evaluations and at its seconds."""
    rows = [row for row in rows if row["prompt"] in pool.curves]
    evaluations = float(column(rows, "evaluations").mean())
    seconds = float((column(rows, "draw_seconds") + column(rows, "judge_seconds")).mean())
    figures: Row = {
        "case": rows[0]["case"],
        "captions": len(rows),
        "drawings": evaluations / pool.evaluations,
        "verifier_calls": float(column(rows, "verifier_calls").mean()),
        "seconds": seconds,
        "n_at_seconds": seconds / pool.seconds,
    }
    for name in MEASURES:
        own = column(rows, name)
        figures[name] = float(np.nanmean(own))
        for cost, n in (("evaluations", figures["drawings"]), ("seconds", figures["n_at_seconds"])):
            best_of_n = np.array([pool.at(row["prompt"], name, n) for row in rows])
            gap = interval(np.nan_to_num(own) - best_of_n)
            figures |= dict(
                zip((f"{name}_gain_{cost}{s}" for s in ("", "_low", "_high")), gap, strict=True)
            )
    for category in sorted({row["category"] for row in rows}):
        part = [row for row in rows if row["category"] == category]
        best_of_n = np.array([pool.at(row["prompt"], "judge", figures["drawings"]) for row in part])
        figures[f"judge_gain_{category}"] = float((column(part, "judge") - best_of_n).mean())
    return figures


def tables(out: Path) -> None:
    """Prints, writes and plots the comparisons of all finished cases."""
    files = {p.stem: parquet.read_table(p).to_pylist() for p in sorted(out.glob("*.parquet"))}
    repairs = {k: files.pop(k) for k in [*files] if k.startswith("repairs-")}
    details = {k: files.pop(k) for k in [*files] if k.startswith("details-")}
    files.pop("frontier", None)
    if "pool" not in files:
        print(f"{out} has no pool.parquet yet: run the case pool, to which others are compared.")
        return
    live = max((k for k in files if k.startswith("best_of_n@")), default="", key=size_of)
    pool = Pool(files.pop("pool"), files.get(live, ()))
    numbers = range(1, min(len(c["judge"]) for c in pool.curves.values()) + 1)
    curve = {n: [pool.at(p, "judge", n) for p in pool.curves] for n in numbers}
    print(f"{len(pool.curves)} captions; best of n, judge: ", end="")
    print(", ".join(f"{n}: {np.mean(curve[n]):.1%}" for n in (1, *BUDGETS) if n in curve))
    rates = {"best_of_n": [float(np.mean(curve[n])) for n in numbers]}
    comparisons = [
        compare(rows, pool)
        | rates
        | {"pool_captions": len(pool.curves)}
        | compare_tiers(rows, files.get(case.removeprefix(LOOKS), ()) if LOOKS in case else ())
        for case, rows in files.items()
    ]
    comparisons.sort(key=lambda r: r["drawings"])
    print(f"{'case':22s} drawings  seconds  seconds=n  judge  over best of n: evaluations, seconds")
    for r in comparisons:
        gains = []
        for cost in ("evaluations", "seconds"):
            mean, low, high = (r[f"judge_gain_{cost}{s}"] for s in ("", "_low", "_high"))
            gains.append(f"{mean:+.1%} [{low:+.1%}, {high:+.1%}]")
        seconds = f"{r['seconds']:7.3f}  {r['n_at_seconds']:9.2f}"
        figures = f"{r['drawings']:8.2f}  {seconds}  {r['judge']:.1%}"
        print(f"{r['case']:22s} {figures}  {'  '.join(gains)}")
    for name, rows in repairs.items():
        kept = [row for row in rows if row["accepted"]]
        if not kept:
            continue
        fine = np.mean([row["child_score"] >= row["parent_score"] for row in kept])
        failed = [row for row in rows if not row["parent_judge"]]
        passed = np.mean([row["child_judge"] for row in failed])
        print(
            f"{name}: {len(rows)} repaints, {passed:.1%} of {len(failed)} with a failed parent "
            f"pass; of {len(kept)} accepted the judge finds {fine:.1%} no worse"
        )
    for r in comparisons:
        if np.isfinite(r["tiers_gain"]):
            print(
                f"{r['case']}: {r['tiers_seconds']:.2f} of the seconds of one tier "
                f"({r['tiers_verify_seconds']:.2f} of those of the verifier); judge "
                f"{r['tiers_gain']:+.1%} [{r['tiers_gain_low']:+.1%}, {r['tiers_gain_high']:+.1%}]"
            )
    for name, rows in details.items():
        print(details_text(name, rows))
    if comparisons:
        write_rows(comparisons, out / "frontier.parquet")
    (out / "frontier.svg").write_text(chart(comparisons, curve), "utf-8")


def compare_tiers(rows: Sequence[Row], other: Sequence[Row]) -> Row:
    """Compares a case in two tiers with the same strategy in one, on the captions of both.

    Args:
        rows: of the case.
        other: of the strategy in one tier; empty for a case that is none in two.
    """
    there = {row["prompt"]: row for row in other}
    both = [(row, there[row["prompt"]]) for row in rows if row["prompt"] in there]
    if not both:
        return dict.fromkeys(TIERS, float("nan"))
    mine, theirs = [row for row, _ in both], [row for _, row in both]
    gap = interval(column(mine, "judge") - column(theirs, "judge"))
    verifying = column(mine, "judge_seconds").sum() / column(theirs, "judge_seconds").sum()
    ratio = total_seconds(mine) / total_seconds(theirs)
    return dict(zip(TIERS, (*gap, ratio, float(verifying)), strict=True))


def details_text(name: str, rows: Sequence[Row]) -> str:
    """Says how quick scores and diagnoses of the same images agree."""
    words = []
    for what in ("", "_alignment"):
        quick, diagnosed = column(rows, f"quick{what}"), column(rows, f"diagnosed{what}")
        gap = diagnosed - quick
        words.append(f"diagnosed - quick{what} {gap.mean():+.4f}, deviation {gap.std():.4f}")
    seconds = column(rows, "diagnosed_seconds").mean() / column(rows, "quick_seconds").mean()
    return f"{name}: {len(rows)} looks; {'; '.join(words)}; a look takes {seconds:.1f} quick scores"


def total_seconds(rows: Sequence[Row]) -> float:
    """Returns the seconds of generating and verifying."""
    return float((column(rows, "draw_seconds") + column(rows, "judge_seconds")).sum())


def size_of(case: str) -> int:
    """Returns the rough cost of a case in drawings, from its name."""
    return int(case.partition("@")[2])


def chart(comparisons: Sequence[Row], curve: Mapping[int, Sequence[float]]) -> str:
    """Plots the judge's pass rate against drawings."""
    every = Series("best of n", [(float(n), float(np.mean(v))) for n, v in curve.items()])
    names = dict.fromkeys(r["case"].split("@")[0] for r in comparisons)
    shown = [
        Series(
            name,
            [(r["drawings"], r["judge"]) for r in comparisons if r["case"].startswith(f"{name}@")],
        )
        for name in names
    ]
    charts = [
        line_chart(
            Chart(
                "Judge's pass rate", "network evaluations, in drawings", [every, *shown[k : k + 3]]
            )
        )
        for k in range(0, max(len(shown), 1), 3)
    ]
    return standalone_svg(charts, "Strategies at equal cost")
