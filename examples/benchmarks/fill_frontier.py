"""Writes the measured figures into FRONTIER.md and into the guides of docs/.

    python examples/benchmarks/frontier.py OUT …          # on a GPU, and on a CPU
    cp OUT/frontier.parquet examples/benchmarks/frontier/gpu.parquet     # or cpu.parquet
    python examples/benchmarks/fill_frontier.py
    python examples/benchmarks/fill_frontier.py --run figures.parquet    # of run_figures.py, too

In FRONTIER.md it replaces what stands between `<!-- NAME -->` and `<!-- end -->`. In
docs/guides/strategies.md it replaces the numbers of a sentence, and in the table the gains and the
costs that were measured; in docs/benchmarks.md the numbers of a sentence. Everything else is left
as it is; text that it does not find is an error.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from frontier_tables import LOOKS
from pyarrow import parquet
from run_figures import share_closed

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"
GUIDE, BENCHMARKS = DOCS / "guides" / "strategies.md", DOCS / "benchmarks.md"
ROWS = {
    "| `adaptive` ": ("adaptive@8", r"here [\d.]+ of"),
    "| `inpaint_reroll` with `enough` ": ("reroll_enough@8", r"here [\d.]+"),
    "| the same without `enough` ": ("reroll@8", ""),
    "| `successive_halving` ": ("halving@8", ""),
    "| `seed_beam` ": ("beam@8", ""),
    "| `zero_order` ": ("zero_order@8", ""),
    "| `search_over_paths` ": ("paths@8", ""),
    "| `fk_steering` ": ("fk@8", ""),
    "| `spectral` ": ("spectral@8", ""),
}
"""How a row of the guide's table begins -> its case, and the cost in it that is measured."""
CATEGORIES = {
    "single_object": "single", "two_objects": "two objects", "counting": "counting",
    "colours": "colours", "position": "position", "attribute_binding": "binding",
}  # fmt: skip
Row = Mapping[str, Any]


def percent(share: float) -> str:
    """Returns a share as it stands in the documents."""
    return f"{share:.1%}".replace("%", " %")


def points(difference: float, *, plus: bool = True) -> str:
    """Returns a difference of shares in points."""
    text = f"{100 * difference:{'+' if plus else ''}.1f}"
    return text.replace("-0.0", "0.0").replace("+0.0", "0.0").replace("-", "−")


def gain(row: Row, name: str) -> str:
    """Returns a gain with its interval."""
    low, high = (points(row[f"{name}_{end}"], plus=False) for end in ("low", "high"))
    return f"{points(row[name])} [{low}, {high}]"


def main_table(rows: Sequence[Row]) -> str:
    """Returns the pass rates of best of n, and the table of all cases."""
    curve = rows[0]["best_of_n"]
    rates = ", ".join(
        f"{n}: {percent(curve[n - 1])}" for n in (1, 2, 4, 8, 16, 32) if n <= len(curve)
    )
    lines = [
        f"Best of n, judge, {rows[0]['pool_captions']} captions: {rates}.",
        "",
        "| case | captions | drawings | seconds, in images | judge | gain at equal evaluations | "
        "gain at equal seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['case']} | {r['captions']} | {r['drawings']:.2f} | {r['n_at_seconds']:.2f} | "
        f"{percent(r['judge'])} | {gain(r, 'judge_gain_evaluations')} | "
        f"{gain(r, 'judge_gain_seconds')} |"
        for r in rows
    ]
    return "\n".join(lines)


def category_table(rows: Sequence[Row]) -> str:
    """Returns the gains at equal evaluations by category."""
    names = [name for name in CATEGORIES if f"judge_gain_{name}" in rows[0]]
    lines = [
        f"| case | {' | '.join(CATEGORIES[name] for name in names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row in rows:
        cells = (points(row[f"judge_gain_{name}"]) for name in names)
        lines.append(f"| {row['case']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tiers_table(rows: Sequence[Row]) -> str:
    """Returns the cases in two tiers beside the same strategies in one."""
    lines = [
        "| strategy | judge, one tier | two tiers | difference, paired | seconds of one tier | "
        "of the verifier's |",
        "|---|---|---|---|---|---|",
    ]
    one = {row["case"]: row for row in rows}
    for row in rows:
        name = row["case"].removeprefix(LOOKS)
        if row["case"] != name and name in one:
            lines.append(
                f"| {name} | {percent(one[name]['judge'])} | {percent(row['judge'])} | "
                f"{gain(row, 'tiers_gain')} | {row['tiers_seconds']:.2f} | "
                f"{row['tiers_verify_seconds']:.2f} |"
            )
    return "\n".join(lines)


def fill_block(text: str, name: str, block: str) -> str:
    """Replaces what stands between a marker and the next end."""
    pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
    return replaced(pattern, lambda m: m[1] + block + m[2], text, flags=re.DOTALL)


def replaced(pattern: str, new: Any, text: str, *, flags: int = 0) -> str:
    """Replaces a pattern that must be there once."""
    text, count = re.subn(pattern, new, text, flags=flags)
    if count != 1:
        raise SystemExit(f"{pattern!r} must be in the document once, it is there {count} times.")
    return text


def with_numbers(text: str, sentence: str, values: Sequence[str]) -> str:
    """Replaces the numbers of a sentence, in which `#` stands for each and lines may break."""
    number = r"([−+]?[\d.,]+)"
    pattern = re.escape(sentence).replace(r"\#", "#").replace("#", number)
    pattern = pattern.replace(r"\ ", r"\s+")

    def fill(match: re.Match[str]) -> str:
        found = match[0]
        for place in range(len(values), 0, -1):
            start, end = (position - match.start() for position in match.span(place))
            found = found[:start] + values[place - 1] + found[end:]
        return found

    return replaced(pattern, fill, text)


def guide_table(text: str, cases: Mapping[str, Row]) -> str:
    """Fills the table of strategies."""
    lines = text.split("\n")
    for start, (case, cost) in ROWS.items():
        places = [i for i, line in enumerate(lines) if line.startswith(start)]
        if len(places) != 1:
            raise SystemExit(f"{start!r} must begin one line of {GUIDE}.")
        if case not in cases:
            print(f"{case} was not measured; its row is left as it is")
            continue
        cells, row = lines[places[0]].split(" | "), cases[case]
        cells[3] = gain(row, "judge_gain_evaluations")
        if cost:
            words = cost.replace(r"[\d.]+", f"{row['drawings']:.1f}")
            cells[2] = replaced(cost, words, cells[2])
        lines[places[0]] = " | ".join(cells)
    return "\n".join(lines)


def with_pass_rates(text: str, row: Row) -> str:
    """Fills the guide's sentence about best of n."""
    sentence = "one image passes in # %, best-of-8 in # %, best-of-16 in # % (# captions;"
    rates = [f"{100 * row['best_of_n'][n - 1]:.1f}" for n in (1, 8, 16)]
    return with_numbers(text, sentence, [*rates, f"{row['pool_captions']:,}"])


def run_values(path: Path) -> list[str]:
    """Returns the figures of the sentence about a best-of-8 run, from `run_figures.py`."""
    table = pd.read_parquet(path)
    rows = [
        (p.judge.mean(), p.judge[p.chosen].sum(), p.judge.max())
        for _, p in table.groupby("prompt_id")
    ]
    single, chosen, best = np.array(rows, dtype=float).T
    shares = [single.mean(), chosen.mean(), best.mean(), *share_closed(single, chosen, best)]
    return [str(len(rows)), *(f"{100 * share:.1f}" for share in shares)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="written by run_figures.py --out")
    options = parser.parse_args()
    page, guide = (HERE / "FRONTIER.md").read_text("utf-8"), GUIDE.read_text("utf-8")
    cases: dict[str, Row] = {}
    for device in ("cpu", "gpu"):
        rows = parquet.read_table(HERE / "frontier" / f"{device}.parquet").to_pylist()
        if "best_of_n" not in rows[0]:
            print(f"{device}.parquet is of an earlier version; run frontier.py OUT --tables")
            continue
        page = fill_block(page, device, main_table(rows))
        page = fill_block(page, f"{device} two tiers", tiers_table(rows))
        # What was measured on both is shown as on the GPU, which had more captions.
        cases |= {row["case"]: row for row in rows}
        if device == "gpu":
            page = fill_block(page, "gpu categories", category_table(rows))
            guide = guide_table(with_pass_rates(guide, rows[0]), cases)
    if options.run:
        sentence = (
            "On # held-out captions the judge passes # % of single images and # % of the chosen "
            "ones. A perfect choice among the eight would pass # %, so the search closes # % "
            "[#, #] of that gap"
        )
        text = BENCHMARKS.read_text("utf-8")
        BENCHMARKS.write_text(with_numbers(text, sentence, run_values(options.run)), "utf-8")
    (HERE / "FRONTIER.md").write_text(page, "utf-8")
    GUIDE.write_text(guide, "utf-8")


if __name__ == "__main__":
    main()
