"""What a run achieved: first draw against chosen picture, and what the held-out judge says.

Pass rates carry Wilson's 95 % interval (Wilson 1927); the share of the distance closed
carries a 95 % percentile bootstrap over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from tts_verifier.choice.objective import Pick, choose
from tts_verifier.types import Look, Prompt, Trial, path_of
from tts_verifier.types.score_names import written_scores

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class PromptSummary:
    """One prompt: its first finished draw, the chosen trial, and what counts of all others.

    `tied`: another picture has the chosen one's objective. `best`: the judge's scores by name,
    each the highest of all pictures that may be chosen.
    """

    prompt: Prompt
    first: Pick | None
    chosen: Pick | None
    candidates: int = 0
    failed: int = 0
    tied: bool = False
    best: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judged:
    """Means over prompts of one of the judge's scores; `passes` if it is passed or not."""

    name: str
    prompts: int
    first: float
    chosen: float
    best: float
    closed: float
    closed_interval: Interval

    @property
    def passes(self) -> bool:
        """True when the means are pass rates."""
        return self.name == "passed"


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """All prompts; `judged` is None when no judge was named or none of its scores is usable."""

    prompts: tuple[PromptSummary, ...]
    candidates: int
    failed: int
    objective_first: float
    objective_chosen: float
    ties: int
    judged: Judged | None


def summarise_prompt(prompt: Prompt, trials: Sequence[Trial]) -> PromptSummary:
    """Summarises a prompt from all its trials, in order."""
    choice = choose(trials)
    drawn = [t for t in trials if not isinstance(t.proposal, Look)]
    first = next((t for t in drawn if t.progress >= 1 and t.image), None)
    best: dict[str, float] = {}
    for trial in choice.order if first is None else (first, *choice.order):
        for name, value in trial.judge.items():
            if math.isfinite(value):
                best[name] = max(value, best.get(name, value))
    top = choice.trial.objective if choice.trial else math.nan
    return PromptSummary(
        prompt=prompt,
        first=None if first is None else Pick.of(first),
        chosen=None if choice.trial is None else Pick.of(choice.trial),
        candidates=len(drawn),
        failed=sum(bool(t.error) for t in trials),
        tied=sum(t.objective == top for t in choice.order) > 1,
        best=best,
    )


def summarise(rows: Sequence[PromptSummary]) -> Summary:
    """Summarises a run from its prompts."""
    usable = [(r.first, r.chosen) for r in rows if r.first and r.chosen and not r.first.error]
    return Summary(
        prompts=tuple(rows),
        candidates=sum(row.candidates for row in rows),
        failed=sum(row.failed for row in rows),
        objective_first=_mean([first.objective for first, _ in usable]),
        objective_chosen=_mean([chosen.objective for _, chosen in usable]),
        ties=sum(row.tied for row in rows),
        judged=_judged(rows),
    )


def wilson(successes: float, count: int) -> Interval:
    """Returns Wilson's 95 % interval of a rate."""
    z, p = 1.959964, successes / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _judged(rows: Sequence[PromptSummary]) -> Judged | None:
    names = [name for row in rows if row.chosen for name in row.chosen.judge]
    if not names:
        return None
    name = "passed" if "passed" in names else names[0]
    triples = []
    for row in rows:
        first = row.first.judge.get(name, math.nan) if row.first else math.nan
        # A prompt without a usable picture is one that was not passed.
        chosen = row.chosen.judge.get(name, math.nan) if row.chosen else 0.0
        best = row.best.get(name, math.nan)
        if all(map(math.isfinite, (first, chosen, best))):
            triples.append((first, chosen, best))
    if not triples:
        return None
    table = np.array(triples)
    first, chosen, best = table.mean(axis=0).tolist()
    interval = _bootstrap(table)
    return Judged(name, len(triples), first, chosen, best, _closed(table), interval)


def _closed(table: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """Returns (chosen - first) / (best - first) of the means, NaN without a distance."""
    first, chosen, best = table.mean(axis=0).tolist()
    return float((chosen - first) / (best - first)) if best > first else math.nan


def _bootstrap(
    table: np.ndarray[tuple[int, ...], np.dtype[np.float64]], resamples: int = 2000
) -> Interval:
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(table), (resamples, len(table)))
    shares = [share for pick in picks if not math.isnan(share := _closed(table[pick]))]
    if not shares:
        return math.nan, math.nan
    low, high = np.percentile(shares, [2.5, 97.5]).tolist()
    return low, high


def as_values(summary: Summary) -> dict[str, Any]:
    """Returns the summary as JSON values; a number that is not known is None."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return list(map(plain, value)) if isinstance(value, tuple) else value

    fields = ("candidates", "failed", "objective_first", "objective_chosen", "ties")
    values = {name: plain(getattr(summary, name)) for name in fields}
    judged = summary.judged
    values["judged"] = judged and {n: plain(getattr(judged, n)) for n in Judged.__slots__}
    values["prompts"] = {
        row.prompt.id: {
            "prompt": row.prompt.text,
            "chosen": row.chosen and row.chosen.id,
            "image": row.chosen and path_of(row.chosen.image),
            "objective": row.chosen and plain(row.chosen.objective),
        }
        for row in summary.prompts
    }
    return values


# -- as text -----------------------------------------------------------------------------


def as_text(summary: Summary) -> str:
    """Returns the table of prompts and the lines on all of them, as the terminal shows it."""
    lines = [*_table(summary.prompts), ""]
    failed = f", {summary.failed} failed" if summary.failed else ""
    lines.append(
        f"{len(summary.prompts)} prompts, {summary.candidates} candidates{failed}, "
        f"{summary.ties} prompts with a tie for the best"
    )
    lines.append(
        f"objective, mean: first draw {summary.objective_first:.3f} -> chosen "
        f"{summary.objective_chosen:.3f}"
    )
    if summary.judged is None:
        lines.append("No held-out judge was named: only the verifier itself says it got better.")
    else:
        lines += _judged_lines(summary.judged)
    return "\n".join(lines)


def _judged_lines(judged: Judged) -> list[str]:
    def show(value: float) -> str:
        if not judged.passes:
            return f"{value:.3f}"
        low, high = wilson(value * judged.prompts, judged.prompts)
        return f"{value:.1%} [{low:.1%}, {high:.1%}]"

    what = "pass rate (95 % Wilson)" if judged.passes else f"mean {judged.name}"
    low, high = judged.closed_interval
    share = "none to close"
    if math.isfinite(judged.closed):
        share = f"{judged.closed:.1%} [{low:.1%}, {high:.1%}] (95 % bootstrap over prompts)"
    return [
        f"held-out judge, {what}: first draw {show(judged.first)} -> chosen "
        f"{show(judged.chosen)} -> best possible {show(judged.best)}",
        f"share of that distance closed: {share}",
    ]


def _table(rows: Sequence[PromptSummary]) -> list[str]:
    some = next((r.chosen for r in rows if r.chosen), None)
    if some is None:
        return ["No prompt has a usable picture."]
    names = ["objective", *written_scores(some.scores), *(f"judge_{name}" for name in some.judge)]
    table = [["prompt", *names]]
    for row in rows:
        texts = [f"{_value(row.first, n)} -> {_value(row.chosen, n)}" for n in names]
        text = row.prompt.text
        table.append([f"{row.prompt.id} {text if len(text) <= 40 else text[:39] + '…'}", *texts])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]


def _value(trial: Pick | None, name: str) -> str:
    if trial is None:
        return "none"
    values = {**trial.scores, **{f"judge_{k}": v for k, v in trial.judge.items()}}
    value = trial.objective if name == "objective" else values.get(name, math.nan)
    return f"{value:.3f}"
