"""A run's summary as text for a terminal, and as values for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from tts_verifier.choice.objective import Pick
from tts_verifier.choice.summary import JudgeSummary, PromptSummary, Summary, wilson
from tts_verifier.types import path_of
from tts_verifier.types.score_names import written_scores

_LONGEST_PROMPT: Final = 40
"""Characters of a prompt in the table."""


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
    """Returns a table of the prompts, and lines about all of them, for a terminal."""
    lines = [*_prompt_table(summary.prompts), ""]
    failed = f", {summary.failed} failed" if summary.failed else ""
    lines.append(
        f"{len(summary.prompts)} prompts, {summary.candidates} candidates{failed}, "
        f"{summary.ties} prompts with a tie for the best"
    )
    lines.append(
        f"objective, mean: first draw {summary.objective_first:.3f} -> chosen "
        f"{summary.objective_chosen:.3f}"
    )
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
        low, high = wilson(value * judge.prompts, judge.prompts)
        return f"{value:.1%} [{low:.1%}, {high:.1%}]"

    measure = "pass rate (95 % Wilson)" if judge.passes else f"mean {judge.name}"
    low, high = judge.closed_interval
    share = "none to close"
    if math.isfinite(judge.closed):
        share = f"{judge.closed:.1%} [{low:.1%}, {high:.1%}] (95 % bootstrap over prompts)"
    return [
        f"held-out judge, {measure}: first draw {show(judge.first)} -> chosen "
        f"{show(judge.chosen)} -> best possible {show(judge.best)}",
        f"share of that distance closed: {share}",
    ]


def _prompt_table(rows: Sequence[PromptSummary]) -> list[str]:
    """Returns a line per prompt: every score of the first draw and of the chosen image."""
    example = next((r.comparable for r in rows if r.comparable), None)
    if example is None:
        return ["No prompt has a usable image."]
    judge_names = (f"judge_{name}" for name in example.judge)
    names = ["objective", *written_scores(example.scores), *judge_names]
    table = [["prompt", *names]]
    for row in rows:
        cells = [f"{_score(row.first, n)} -> {_score(row.comparable, n)}" for n in names]
        text = row.prompt.text
        if len(text) > _LONGEST_PROMPT:
            text = text[: _LONGEST_PROMPT - 1] + "…"
        table.append([f"{row.prompt.id} {text}", *cells])
    return aligned_columns(table)


def _score(pick: Pick | None, name: str) -> str:
    if pick is None:
        return "none"
    values = {**pick.scores, **{f"judge_{k}": v for k, v in pick.judge.items()}}
    value = pick.objective if name == "objective" else values.get(name, math.nan)
    return f"{value:.3f}"
