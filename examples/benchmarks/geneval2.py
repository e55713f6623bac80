"""Strategies beside best-of-n at equal seconds, on a prompt set, judged by a held-out judge.

    python examples/benchmarks/geneval2.py OUT sd35 prompts=geneval2_data.jsonl \
        judge.name=vqascore judge.model=Qwen/Qwen2.5-VL-7B-Instruct --n 16
    python examples/benchmarks/geneval2.py OUT sdxl prompts=PartiPrompts.tsv judge.name=clip --limit 200
    python examples/benchmarks/geneval2.py OUT          # no model: the table of what is there

The first argument after OUT is a recipe, packaged or a file; overrides follow, as for `tts-run`.
The recipe's generator and verifier are used, and its strategy is replaced by that of each case.
It must name a judge, whose scores no strategy sees. GENEVAL2.md describes the files of prompts.

`best_of_n` draws n images for every prompt; the best of every smaller number follows from them
exactly. Another case is compared, prompt by prompt, with the best of n at the seconds that the
case took on average, n being interpolated. Seconds are those of generating and verifying, not of
judging. With --pass-at the figure is the rate of chosen images whose judge's score reaches it.
A case is a run folder: a stopped command goes on where it was, and runs nothing twice.
"""  # noqa: E501

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from tts_verifier.analysis.expected_best import Estimate, estimate, expected_best
from tts_verifier.choice import choose
from tts_verifier.errors import RecipeError, TTSError, UnsupportedError
from tts_verifier.log import read_trials
from tts_verifier.recipe import Recipe, load_recipe
from tts_verifier.registry import builder
from tts_verifier.runner import execute
from tts_verifier.runner.progress import progress_view
from tts_verifier.types import Look, Trial

POOL = "best_of_n"
"""The case that the others are compared with."""
Row = dict[str, Any]


def cases(n: int, thresholds: Mapping[str, float]) -> dict[str, Row]:
    """Returns strategies of about the cost of n images by the name of their case.

    Args:
        n: images.
        thresholds: score of the verifier -> what is good enough; empty leaves `adaptive` out.
    """
    some = max(n // 4, 1)
    best_of_n = {"name": "best_of_n", "n": n}
    found: dict[str, Row] = {
        POOL: best_of_n,
        "adaptive": {"name": "adaptive", "strategy": best_of_n, "thresholds": dict(thresholds)},
        "inpaint_reroll": {"name": "inpaint_reroll", "n": some, "rounds": some},
        "successive_halving": {"name": "successive_halving", "n": 2 * n, "keep": 0.2,
                               "stops": [0.35, 1.0]},
        "seed_beam": {"name": "seed_beam", "n": n, "keep": some},
        "zero_order": {"name": "zero_order", "neighbours": max(min(n - 1, 4), 1), "rounds": some},
    }  # fmt: skip
    if not thresholds:
        del found["adaptive"]
    return found


# -- running -------------------------------------------------------------------------------


def run_cases(recipe: Recipe, chosen: Mapping[str, Row], out: Path, limit: int | None) -> None:
    """Runs cases in their order; one that the generator or the verifier cannot serve is left out.

    Raises:
        RecipeError: the recipe names no judge.
    """
    if "judge" not in recipe.sections:
        raise RecipeError(
            "A comparison needs a held-out judge, this recipe names none. Name one that is not "
            "the verifier, such as judge.name=clip."
        )
    prompts = recipe.prompts[:limit]
    # Weights are loaded once, and an image is drawn, so that no case pays for starting up.
    first = recipe.build(strategy=builder("strategy", "best_of_n")(1))
    execute(first, prompts[:1])
    parts = {name: getattr(first, name) for name in ("generator", "verifier", "judge")}
    for case, strategy in chosen.items():
        arguments = {name: value for name, value in strategy.items() if name != "name"}
        search = builder("strategy", strategy["name"])(**arguments)
        try:
            setup = recipe.build(strategy=search, **parts)
        except UnsupportedError as error:
            print(f"{case} is left out: {error}")
            continue
        resolved = recipe.resolved() | {"strategy": strategy}
        resolved["prompts"] = [{"id": p.id, "prompt": p.text} for p in prompts]
        print(f"{case}: {len(prompts)} prompts")
        with progress_view("auto") as progress:
            execute(setup, prompts, folder=out / case, progress=progress, recipe=resolved)


# -- comparing -----------------------------------------------------------------------------


def measured(trial: Trial | None, score: str, pass_at: float | None) -> float:
    """Returns the judge's score of an image, or whether it passes; NaN if it was not judged."""
    value = math.nan if trial is None else trial.judge.get(score, math.nan)
    return value if pass_at is None or math.isnan(value) else float(value >= pass_at)


def by_prompt(folder: Path) -> dict[str, list[Trial]]:
    """Returns the trials of a run by prompt id."""
    found: dict[str, list[Trial]] = {}
    for trial in read_trials(folder):
        found.setdefault(trial.prompt.id, []).append(trial)
    return found


def judged_score(trials: Mapping[str, Sequence[Trial]], wanted: str | None) -> str:
    """Returns the judge's score to compare by: the wanted one, or else the first one."""
    names = [*dict.fromkeys(name for row in trials.values() for t in row for name in t.judge)]
    if not names or (wanted is not None and wanted not in names):
        raise RecipeError(f"The judge gave no score {wanted or ''}; it gave {names or 'none'}.")
    return wanted or names[0]


class Pool:
    """Best of n: what it reaches and takes, for every prompt that the judge could judge.

    Args:
        trials: of the case `best_of_n`, by prompt.
        score: of the judge.
        pass_at: as in `measured`.
    """

    def __init__(
        self, trials: Mapping[str, Sequence[Trial]], score: str, pass_at: float | None
    ) -> None:
        self.curves: dict[str, np.ndarray] = {}
        self.least: dict[str, float] = {}
        self.category = {name: row[0].prompt.category for name, row in trials.items()}
        seconds = [t.cost.seconds for row in trials.values() for t in row]
        self.seconds = float(np.mean(seconds))
        for name, row in trials.items():
            values = np.array([measured(t, score, pass_at) for t in row])
            if np.isnan(values).all():
                continue
            self.least[name] = 0.0 if pass_at is not None else float(np.nanmin(values))
            # What failed to be drawn or judged counts as the worst image of its prompt.
            values = np.nan_to_num(values, nan=self.least[name])
            goals = np.array([t.objective if t.finished else math.nan for t in row])
            # A subset without a usable draw adds 0 to the expectation, and so counts as the least.
            shifted = expected_best(goals, values - self.least[name])
            self.curves[name] = shifted + self.least[name]
        self.n = min((len(curve) for curve in self.curves.values()), default=0)

    def at(self, prompt: str, n: float) -> float:
        """Returns the measure of the best of n; n need not be whole."""
        curve = self.curves[prompt]
        return float(np.interp(n, np.arange(1, len(curve) + 1), curve))

    def in_categories(self, names: Sequence[str], values: Sequence[float]) -> Row:
        """Returns `in_CATEGORY` -> the mean of a measure over the prompts of that category.

        Args:
            names: ids of prompts.
            values: of these prompts.
        """
        found: dict[str, list[float]] = {}
        for name, value in zip(names, values, strict=True):
            if self.category[name]:
                found.setdefault(f"in_{self.category[name]}", []).append(float(value))
        return {name: float(np.mean(found[name])) for name in sorted(found)}


def pool_rows(pool: Pool) -> list[Row]:
    """Returns the rows of best of 1, 2, 4, … n."""
    numbers = sorted({2**i for i in range(12) if 2**i <= pool.n} | {pool.n})
    table = np.array([[pool.at(name, n) for n in numbers] for name in pool.curves])
    return [
        row_of(f"best of {n}", len(table), n * pool.seconds, value)
        | pool.in_categories([*pool.curves], column)
        for n, value, column in zip(numbers, estimate(table), table.T, strict=True)
    ]


def case_row(
    case: str, trials: Mapping[str, Sequence[Trial]], pool: Pool, score: str, pass_at: float | None
) -> Row:
    """Returns the row of a case: its measure, and its gain over the best of n at its seconds."""
    names = [name for name in pool.curves if name in trials]
    values = np.array(
        [measured(choose(trials[name]).trial, score, pass_at) for name in names], dtype=float
    )
    values = np.where(np.isnan(values), [pool.least[name] for name in names], values)
    seconds = float(np.mean([sum(t.cost.seconds for t in trials[name]) for name in names]))
    n = seconds / pool.seconds
    gaps = values - np.array([pool.at(name, n) for name in names])
    value, gain = estimate(np.column_stack([values, gaps]))
    row = row_of(case, len(names), seconds, value)
    images = [sum(not isinstance(t.proposal, Look) for t in trials[name]) for name in names]
    row |= {"images": float(np.mean(images)), "n_at_seconds": n, "beyond": n > pool.n}
    row |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
    return row | pool.in_categories(names, values)


def row_of(case: str, prompts: int, seconds: float, value: Estimate) -> Row:
    """Returns the columns that all rows have."""
    measure = {"value": value.mean, "low": value.low, "high": value.high}
    return {"case": case, "prompts": prompts, "seconds": seconds, **measure}


def text_of(rows: Sequence[Row], measure: str) -> str:
    """Returns the rows as a table of Markdown."""
    lines = [
        f"| case | prompts | seconds a prompt | {measure} [95 %] | images | n of equal seconds | "
        "gain over best of n [95 %] |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        cells = [r["case"], str(r["prompts"]), f"{r['seconds']:.2f}"]
        cells.append(f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]")
        if "gain" not in r:
            cells += ["", "", ""]
        elif r["beyond"]:
            # Best of n was not drawn as far, so it would be worse off in a comparison.
            cells += [f"{r['images']:.2f}", f"{r['n_at_seconds']:.2f}, beyond n", "not compared"]
        else:
            gain = f"{r['gain']:+.3f} [{r['gain_low']:+.3f}, {r['gain_high']:+.3f}]"
            cells += [f"{r['images']:.2f}", f"{r['n_at_seconds']:.2f}", gain]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def category_text(rows: Sequence[Row]) -> str:
    """Returns the measure by category as a table of Markdown; "" without categories."""
    names = sorted({name for row in rows for name in row if name.startswith("in_")})
    if not names:
        return ""
    lines = [
        f"| case | {' | '.join(name.removeprefix('in_') for name in names)} |",
        f"|---{'|---' * len(names)}|",
    ]
    for row in rows:
        cells = (f"{row.get(name, math.nan):.3f}" for name in names)
        lines.append(f"| {row['case']} | {' | '.join(cells)} |")
    return "\n\n" + "\n".join(lines)


def tables(out: Path, wanted: str | None, pass_at: float | None) -> str:
    """Compares the cases that are there; writes `table.parquet` and `table.md`.

    Raises:
        RecipeError: there is no case `best_of_n`, or the judge did not give the score.
    """
    folders = {p.parent.name: p.parent for p in sorted(out.glob("*/trials.parquet"))}
    if POOL not in folders:
        raise RecipeError(f"{out} needs the case {POOL}, with which others are compared. Run it.")
    first = by_prompt(folders.pop(POOL))
    score = judged_score(first, wanted)
    pool = Pool(first, score, pass_at)
    if not pool.curves:
        raise RecipeError(f"The judge could judge no image of {out}: every {score} is NaN.")
    rows = pool_rows(pool)
    for case, folder in folders.items():
        rows.append(case_row(case, by_prompt(folder), pool, score, pass_at))
    measure = f"judge's {score}" if pass_at is None else f"share with {score} >= {pass_at:g}"
    left = len(first) - len(pool.curves)
    text = text_of(rows, measure) + category_text(rows)
    text += f"\n\n{left} prompts could not be judged." if left else ""
    columns = dict.fromkeys(name for row in rows for name in row)
    filled = [{name: row.get(name) for name in columns} for row in rows]
    parquet.write_table(pa.Table.from_pylist(filled), out / "table.parquet")
    (out / "table.md").write_text(f"{text}\n", "utf-8")
    return text


def threshold(text: str) -> tuple[str, float]:
    """Returns (score, value) of a text such as semantic_alignment=0.9."""
    name, _, value = text.partition("=")
    return name, float(value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("recipe", nargs="?", help="none = the tables of what is there")
    parser.add_argument("overrides", nargs="*", help="as for tts-run, such as prompts=FILE")
    parser.add_argument("--n", type=int, default=16, help="images of the largest best of n")
    parser.add_argument("--only", help="cases by name; default all")
    parser.add_argument("--limit", type=int, help="the first so many prompts; default all")
    parser.add_argument("--enough", type=threshold, action="append", metavar="SCORE=VALUE",
                        help="the verifier's score at which `adaptive` stops")  # fmt: skip
    parser.add_argument("--score", help="the judge's score to compare by; default its first")
    parser.add_argument("--pass-at", type=float, help="compare the share that reaches this score")
    options = parser.parse_intermixed_args(arguments)
    try:
        if options.recipe is not None:
            recipe = load_recipe(options.recipe, options.overrides)
            known = cases(options.n, dict(options.enough or ()))
            names = options.only.split(",") if options.only else [*known]
            if unknown := [name for name in names if name not in known]:
                parser.error(f"no case {unknown[0]!r}; there are {', '.join(known)}")
            run_cases(recipe, {name: known[name] for name in names}, options.out, options.limit)
        print(tables(options.out, options.score, options.pass_at))
    except TTSError as error:
        parser.exit(2, f"Error: {error}\n")


if __name__ == "__main__":
    main()
