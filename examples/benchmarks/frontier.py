"""Every strategy against best-of-n at equal cost, on held-out captions of the miniature world.

    python examples/benchmarks/frontier.py runs/frontier --captions 300
    python examples/benchmarks/frontier.py runs/frontier --captions 1000 --only pool,adaptive@8
    python examples/benchmarks/frontier.py runs/frontier --tables     # no model: what is there

A case is a strategy at a size whose cost is about 2, 4, 8, 16 or 32 drawings; `pool` draws many
for every caption, from which the best of every n follows exactly (`analysis.expected_best`);
`best_of_n@` draws from other seeds, and should gain nothing over it; a drawing's seconds are
those of the largest of these where there is one, else the pool's.
The judge and the oracle of the miniature world, which no strategy sees, read what was chosen.
A case is compared, caption by caption, with the best of n at the network evaluations that the
case took on average, and at its seconds, n taken between whole numbers; intervals are 95 %
bootstraps over captions. A finished case is a Parquet file and is not run again; one that was
cut short goes on from its log. Of repaints, every parent and child is judged as well.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from tts_verifier import Verifier, shapes
from tts_verifier.analysis.expected_best import expected_best
from tts_verifier.analysis.svg import Chart, Series, line_chart, standalone_svg
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.registry import builder
from tts_verifier.runner import run
from tts_verifier.shapes.grammar import parse
from tts_verifier.strategies.inpaint_reroll import accepted
from tts_verifier.types import Prompt, Repaint, Trial

BUDGETS = (2, 4, 8, 16, 32)
SEED = 5_000_011
DRAWS = 2000
"""Bootstrap draws of captions."""
ENOUGH = {"semantic_alignment": 0.99}
MEASURES = ("judge", "oracle", "objective")
Row = dict[str, Any]


def cases(pool: int) -> dict[str, Row]:
    """Returns recipes of strategies by case, `pool` of so many drawings first."""
    found: dict[str, Row] = {"pool": {"name": "best_of_n", "n": pool}}
    for b in BUDGETS:
        reroll = {"name": "inpaint_reroll", "n": max(b // 4, 1)}
        some, few = max(b // 4, 1), max(b // 8, 1)
        found |= {
            f"best_of_n@{b}": {"name": "best_of_n", "n": b},
            f"adaptive@{b}": {
                "name": "adaptive",
                "strategy": {"name": "best_of_n", "n": 4 * b},
                "thresholds": ENOUGH,
                "at_once": 1,
            },
            f"reroll@{b}": reroll | {"rounds": few * 2},
            f"reroll_enough@{b}": reroll | {"rounds": b, "enough": 0.94},
            f"halving@{b}": {
                "name": "successive_halving", "n": 2 * b, "keep": 0.2, "stops": [0.35, 1.0],
            },
            f"beam@{b}": {"name": "seed_beam", "n": b, "keep": some},
            f"zero_order@{b}": {
                "name": "zero_order", "neighbours": min(b - 1, 4), "rounds": some,
            },
            f"paths@{b}": {"name": "search_over_paths", "n": b, "keep": some},
            f"fk@{b}": {"name": "fk_steering", "n": b},
            f"spectral@{b}": {
                "name": "spectral", "population": max(some * 2, 3), "rounds": 2, "shape": [8, 4, 4],
            },
        }  # fmt: skip
    return found


# -- running -------------------------------------------------------------------------------


class Parts:
    """Generator and verifiers, loaded once; `plain` decodes no maps, which only repaints need."""

    def __init__(self, device: str, batch: int) -> None:
        self.generator = DiffusersGenerator("shapes", device=device, batch_size=batch)
        load = partial(Verifier.from_pretrained, "shapes", device=device, batch_size=batch)
        self.plain, self.mapping = load(heatmaps=False), load()

    def verifier(self, case: str) -> Verifier:
        """Returns the cheapest that serves the case."""
        return self.mapping if "reroll" in case else self.plain


def conduct(case: str, recipe: Row, prompts: Sequence[Prompt], parts: Parts, out: Path) -> None:
    """Runs a case and writes its rows."""
    began = time.perf_counter()
    arguments = {key: value for key, value in recipe.items() if key != "name"}
    done = run(
        prompts,
        parts.generator,
        parts.verifier(case),
        builder("strategy", recipe["name"])(**arguments),
        folder=out / "runs" / case,
        detail="diagnose",
        seed=int(case.startswith("best_of_n")),
    )
    wall = time.perf_counter() - began
    with ProcessPoolExecutor() as pool:
        if case == "pool":
            rows = list(pool_rows(done.trials, pool))
        else:
            chosen = {name: choice.trial for name, choice in done.choices.items()}
            rows = list(chosen_rows(done.trials, chosen, pool))
            if repairs := list(repaired(done.trials, pool)):
                write(repairs, out / f"repairs-{case}.parquet")
    about = {"recipe": json.dumps(recipe), "wall_seconds": wall, "device": device_name()}
    write([{"case": case, **row, **about} for row in rows], out / f"{case}.parquet")
    print(f"{case}: {len(done.trials)} trials in {wall:.0f} s", flush=True)


def read(case: tuple[Any, str]) -> Row:
    """Reads a picture: does judge, does oracle pass it, and the judge's score."""
    torch.set_num_threads(1)
    judge, oracle = shapes.judge(*case), shapes.oracle(*case)
    return {
        "judge": float(judge.passed),
        "oracle": float(oracle.passed),
        "judge_score": judge.score,
    }


NOTHING = {"judge": 0.0, "oracle": 0.0, "judge_score": 0.0}


def readings(trials: Sequence[Trial | None], pool: ProcessPoolExecutor) -> list[Row]:
    """Reads pictures in parallel; none at all counts as failed."""
    known = [t for t in trials if t is not None and t.image is not None]
    asked = [(t.image.load(), t.prompt.text) for t in known if t.image is not None]
    found = dict(zip(map(id, known), pool.map(read, asked, chunksize=8), strict=True))
    return [found.get(id(t), NOTHING) for t in trials]


def pool_rows(trials: Sequence[Trial], pool: ProcessPoolExecutor) -> Iterator[Row]:
    """Yields a row a drawing."""
    for trial, seen in zip(trials, readings(trials, pool), strict=True):
        yield {**costs([trial]), "objective": trial.objective, **about(trial.prompt), **seen}


def chosen_rows(
    trials: Sequence[Trial], chosen: Mapping[str, Trial | None], pool: ProcessPoolExecutor
) -> Iterator[Row]:
    """Yields a row a caption."""
    of: dict[str, list[Trial]] = {}
    for trial in trials:
        of.setdefault(trial.prompt.id, []).append(trial)
    names = [*of]
    seen = readings([chosen[name] for name in names], pool)
    for name, reading in zip(names, seen, strict=True):
        best = chosen[name]
        goal = float("nan") if best is None else best.objective
        yield {**costs(of[name]), "objective": goal, **about(of[name][0].prompt), **reading}


def repaired(trials: Sequence[Trial], pool: ProcessPoolExecutor) -> Iterator[Row]:
    """Yields a row a repaint: the judge's word on parent and child, and whether it was kept."""
    known = {t.id: t for t in trials}
    pairs = [
        (trial, trial.proposal)
        for trial in trials
        if isinstance(trial.proposal, Repaint) and trial.image is not None
    ]
    children, parents = [t for t, _ in pairs], [known[repaint.parent] for _, repaint in pairs]
    both = readings([*parents, *children], pool)
    before, after = both[: len(children)], both[len(children) :]
    for (child, proposal), parent, one, two in zip(pairs, parents, before, after, strict=True):
        yield {
            **about(child.prompt),
            "strength": proposal.strength,
            "area": float(proposal.mask.array().mean()),
            "accepted": accepted(child, parent, 0.0),
            "parent_judge": one["judge"],
            "parent_score": one["judge_score"],
            "child_judge": two["judge"],
            "child_score": two["judge_score"],
        }


def about(prompt: Prompt) -> Row:
    """Returns what a row says of its caption."""
    return {"prompt": prompt.text, "category": parse(prompt.text).category}


def costs(trials: Sequence[Trial]) -> Row:
    """Sums what trials took."""
    return {
        "evaluations": sum(t.cost.network_evaluations for t in trials),
        "verifier_calls": sum(t.cost.verifier_calls for t in trials),
        "vae_passes": sum(t.cost.vae_passes for t in trials),
        "draw_seconds": sum(t.cost.draw_seconds for t in trials),
        "judge_seconds": sum(t.cost.judge_seconds for t in trials),
    }


def write(rows: Sequence[Row], path: Path) -> None:
    """Writes rows as Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(list(rows)), path)


def device_name() -> str:
    """Names what the case ran on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


# -- comparing -----------------------------------------------------------------------------


class Pool:
    """What the best of every n gives for each caption, and what n costs."""

    def __init__(self, rows: Sequence[Row], live: Sequence[Row] = ()) -> None:
        of: dict[str, list[Row]] = {}
        for row in rows:
            of.setdefault(row["prompt"], []).append(row)
        self.curves = {
            prompt: {
                name: expected_best(column(drawn, "objective"), column(drawn, name))
                for name in MEASURES
            }
            for prompt, drawn in of.items()
        }
        self.evaluations = float(column(rows, "evaluations").mean())
        timed = live or rows
        seconds = column(timed, "draw_seconds") + column(timed, "judge_seconds")
        self.seconds = float(seconds.sum() / column(timed, "verifier_calls").sum())

    def at(self, prompt: str, name: str, n: float) -> float:
        """Returns a measure of the best of n, n between whole numbers too."""
        curve = self.curves[prompt][name]
        return float(np.interp(n, np.arange(1, len(curve) + 1), curve))


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """Returns one column."""
    return np.array([row[name] for row in rows], dtype=float)


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Returns mean and 95 % bootstrap over captions."""
    rng = np.random.default_rng(0)
    pick = rng.integers(len(differences), size=(DRAWS, len(differences)))
    low, high = np.percentile(differences[pick].mean(1), [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)


def compare(rows: Sequence[Row], pool: Pool) -> Row:
    """Compares a case with the best of n at its evaluations and at its seconds."""
    rows = [row for row in rows if row["prompt"] in pool.curves]
    evaluations = float(column(rows, "evaluations").mean())
    seconds = float((column(rows, "draw_seconds") + column(rows, "judge_seconds")).mean())
    told: Row = {
        "case": rows[0]["case"],
        "captions": len(rows),
        "drawings": evaluations / pool.evaluations,
        "verifier_calls": float(column(rows, "verifier_calls").mean()),
        "seconds": seconds,
        "n_at_seconds": seconds / pool.seconds,
    }
    for name in MEASURES:
        mine = column(rows, name)
        told[name] = float(np.nanmean(mine))
        for cost, n in (("evaluations", told["drawings"]), ("seconds", told["n_at_seconds"])):
            theirs = np.array([pool.at(row["prompt"], name, n) for row in rows])
            gap = interval(np.nan_to_num(mine) - theirs)
            told |= dict(
                zip((f"{name}_gain_{cost}{s}" for s in ("", "_low", "_high")), gap, strict=True)
            )
    for category in sorted({row["category"] for row in rows}):
        part = [row for row in rows if row["category"] == category]
        theirs = np.array([pool.at(row["prompt"], "judge", told["drawings"]) for row in part])
        told[f"judge_gain_{category}"] = float((column(part, "judge") - theirs).mean())
    return told


def tables(out: Path) -> None:
    """Prints, writes and plots all that is there."""
    files = {p.stem: parquet.read_table(p).to_pylist() for p in sorted(out.glob("*.parquet"))}
    repairs = {k: files.pop(k) for k in [*files] if k.startswith("repairs-")}
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
    told = sorted((compare(rows, pool) for rows in files.values()), key=lambda r: r["drawings"])
    print(f"{'case':20s} drawings  seconds=n  judge  over best of n: evaluations, seconds")
    for r in told:
        gains = []
        for cost in ("evaluations", "seconds"):
            mean, low, high = (r[f"judge_gain_{cost}{s}"] for s in ("", "_low", "_high"))
            gains.append(f"{mean:+.1%} [{low:+.1%}, {high:+.1%}]")
        figures = f"{r['drawings']:8.2f}  {r['n_at_seconds']:9.2f}  {r['judge']:.1%}"
        print(f"{r['case']:20s} {figures}  {'  '.join(gains)}")
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
    if told:
        write(told, out / "frontier.parquet")
    (out / "frontier.svg").write_text(picture(told, curve), "utf-8")


def size_of(case: str) -> int:
    """Returns the number of drawings that a case's cost is about."""
    return int(case.partition("@")[2])


def picture(told: Sequence[Row], curve: Mapping[int, Sequence[float]]) -> str:
    """Plots the judge's pass rate against drawings."""
    every = Series("best of n", [(float(n), float(np.mean(v))) for n, v in curve.items()])
    names = dict.fromkeys(r["case"].split("@")[0] for r in told)
    shown = [
        Series(
            name, [(r["drawings"], r["judge"]) for r in told if r["case"].startswith(f"{name}@")]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--captions", type=int, default=300)
    parser.add_argument("--only", help="cases, or strategies, by name; default all")
    parser.add_argument("--pool", type=int, default=32, help="drawings of a caption in the pool")
    parser.add_argument("--minutes", type=float, default=1e9, help="no case starts after this")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="candidates at a time; default by device")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if not options.tables:
        began = time.monotonic()
        texts = shapes.captions(options.captions, SEED, split="held_out")
        prompts = [Prompt(f"{i:04}", text) for i, text in enumerate(texts)]
        parts = Parts(options.device, options.batch or (128 if options.device == "cuda" else 8))
        wanted = options.only.split(",") if options.only else None
        for case, recipe in cases(options.pool).items():
            asked = wanted is None or case in wanted or case.split("@")[0] in wanted
            late = time.monotonic() - began > 60 * options.minutes
            if asked and not late and not (options.out / f"{case}.parquet").exists():
                conduct(case, recipe, prompts, parts, options.out)
    tables(options.out)


if __name__ == "__main__":
    main()
