"""A run's summary as text for a terminal, and as values for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import StringIO
from statistics import fmean
from typing import Any, Final

from tts_verifier.choice.summary import (
    LEAST_PROMPTS,
    JudgeSummary,
    PromptSummary,
    Summary,
    wilson,
)
from tts_verifier.errors import printable
from tts_verifier.types import Pick, path_of
from tts_verifier.types.score_names import written_scores

_COLUMNS: Final = 80
"""Of the terminal that the text fits."""
_FIRST_COLUMN: Final = 40
"""Columns of a prompt, or of a score's name."""
_MOST_PROMPTS: Final = 50
"""More prompts are counted, and not shown."""
_UNKNOWN: Final = (math.nan, math.nan)


def summary_values(summary: Summary) -> dict[str, Any]:
    """Returns the summary as JSON values; None for a number that is not known."""
    names = ("candidates", "failed", "objective_first", "objective_chosen", "ties")
    values = {name: _as_json(getattr(summary, name)) for name in names}
    judge = summary.judge
    values["judged"] = judge and {n: _as_json(getattr(judge, n)) for n in JudgeSummary.__slots__}
    values["prompts"] = {
        row.prompt.id: {
            "prompt": row.prompt.text,
            "chosen": row.chosen and row.chosen.id,
            "image": row.chosen and path_of(row.chosen.image),
            "objective": row.chosen and _as_json(row.chosen.objective),
        }
        for row in summary.prompts
    }
    return values


def summary_text(summary: Summary) -> str:
    """Returns tables of the prompts and of the scores, for a terminal of 80 columns."""
    failed = f", {summary.failed} failed" if summary.failed else ""
    counts = (
        f"{len(summary.prompts)} prompts, {summary.candidates} candidates{failed}, "
        f"{summary.ties} prompts with a tie for the best"
    )
    pairs = [(row.first, row.comparable) for row in summary.prompts]
    example = next((chosen for _, chosen in pairs if chosen), None)
    if example is None:
        return f"No prompt has a usable image.\n\n{counts}"
    judge = None if summary.judge is None else f"judge_{summary.judge.name}"
    lines = [*_prompt_table(summary.prompts, judge), counts, "", *_means_table(example, pairs)]
    if summary.judge is None:
        lines.append("No held-out judge was named: only the verifier itself says it got better.")
    else:
        lines += _judge_lines(summary.judge)
    return "\n".join(lines)


def aligned_columns(table: Sequence[Sequence[str]]) -> list[str]:
    """Returns the rows of a table as lines whose columns start at the same place."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def _as_json(value: Any) -> Any:
    # JSON has neither NaN nor infinity.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return list(map(_as_json, value)) if isinstance(value, tuple) else value


def _judge_lines(judge: JudgeSummary) -> list[str]:
    def show(value: float) -> str:
        if not judge.passes:
            return f"{value:.3f}"
        if judge.prompts < LEAST_PROMPTS:
            return f"{value:.1%}"
        low, high = wilson(value * judge.prompts, judge.prompts)
        return f"{value:.1%} [{low:.1%}, {high:.1%}]"

    intervals = judge.passes and judge.prompts >= LEAST_PROMPTS
    measure = "pass rate" if judge.passes else f"mean {judge.name}"
    low, high = judge.closed_interval
    share = "none to close"
    if math.isfinite(judge.closed):
        share = f"{judge.closed:.1%}"
        if math.isfinite(low):
            share += f" [{low:.1%}, {high:.1%}] (95 % bootstrap)"
    return [
        f"held-out judge, {measure}{' (95 % Wilson)' if intervals else ''}:",
        f"  first draw    {show(judge.first)}",
        f"  chosen        {show(judge.chosen)}",
        f"  best possible {show(judge.best)}",
        f"share of that distance closed: {share}",
    ]


def _prompt_table(rows: Sequence[PromptSummary], judge: str | None) -> list[str]:
    """Returns a line per prompt: the objective and the judge's score, first draw -> chosen."""
    names = ["objective", *([] if judge is None else [judge])]
    # The name of a judge's score may be long, and stands below the table.
    table = [["prompt", "objective", *([] if judge is None else ["judge"])]]
    for row in rows[:_MOST_PROMPTS]:
        cells = [f"{_score(row.first, n)} -> {_score(row.comparable, n)}" for n in names]
        # A prompt is somebody's text, which may have lines and codes.
        table.append([" ".join(printable(f"{row.prompt.id} {row.prompt.text}").split()), *cells])
    lines = _table_lines(table)
    if len(rows) > _MOST_PROMPTS:
        lines.append(f"and {len(rows) - _MOST_PROMPTS} more prompts")
    return lines


def _means_table(example: Pick, pairs: Sequence[tuple[Pick | None, Pick | None]]) -> list[str]:
    """Returns a line per score: its means over the prompts where both images have it."""
    judge_names = (f"judge_{name}" for name in example.judge)
    table = [["mean over prompts", "first draw", "chosen", "gain"]]
    for name in ("objective", *written_scores(example.scores), *judge_names):
        both = [(_value(first, name), _value(chosen, name)) for first, chosen in pairs]
        known = [pair for pair in both if all(map(math.isfinite, pair))]
        first, chosen = (fmean(side) for side in zip(*known, strict=True)) if known else _UNKNOWN
        table.append([name, f"{first:.3f}", f"{chosen:.3f}", f"{chosen - first:+.3f}"])
    return _table_lines(table)


def _table_lines(table: Sequence[Sequence[str]]) -> list[str]:
    """Returns a table, its first row being the header, as lines of at most 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, title in enumerate(table[0]):
        drawn.add_column(title, no_wrap=True, justify="right" if number else "left")
    for cells in table[1:]:
        first = Text(cells[0])
        # In columns and not in letters, of which some take two.
        first.truncate(_FIRST_COLUMN, overflow="ellipsis")
        drawn.add_row(first, *map(Text, cells[1:]))
    out = StringIO()
    Console(file=out, width=_COLUMNS, color_system=None, legacy_windows=False).print(drawn)
    return [*(line.rstrip() for line in out.getvalue().splitlines() if line.strip()), ""]


def _score(pick: Pick | None, name: str) -> str:
    return "none" if pick is None else f"{_value(pick, name):.3f}"


def _value(pick: Pick | None, name: str) -> float:
    if pick is None:
        return math.nan
    values = {**pick.scores, **{f"judge_{k}": v for k, v in pick.judge.items()}}
    return pick.objective if name == "objective" else values.get(name, math.nan)
