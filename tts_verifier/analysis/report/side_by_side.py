"""What several runs chose for the same prompts, the greatest loss first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tts_verifier.analysis.report.cards import PromptRow
from tts_verifier.analysis.report.figures import PairedDifference, paired_difference
from tts_verifier.analysis.report.runs import RunView


@dataclass(frozen=True, slots=True)
class SideBySide:
    """One prompt of several runs."""

    text: str
    """The prompt."""
    rows: tuple[PromptRow | None, ...]
    """The prompt as each run has it."""

    @property
    def category(self) -> str:
        """The prompt's category; empty if it has none."""
        return next((row.prompt.category for row in self.rows if row), "")

    @property
    def change(self) -> float:
        """The lowest objective of the later runs minus that of the first; NaN if unknown."""
        here, *others = (
            row.chosen.objective if row and row.chosen else math.nan for row in self.rows
        )
        known = [other - here for other in others if math.isfinite(other - here)]
        return min(known, default=math.nan)

    @property
    def outcome(self) -> str:
        """How later runs did: "worse" than the first, the "same", "better", or "unknown"."""
        if math.isnan(self.change):
            return "unknown"
        return "worse" if self.change < 0 else "better" if self.change > 0 else "same"


def side_by_side(runs: Sequence[RunView]) -> list[SideBySide]:
    """Returns every prompt that at least two runs have, the greatest loss first."""
    by_text = [{row.prompt.text: row for row in run.prompts} for run in runs]
    texts = dict.fromkeys(text for rows in by_text for text in rows)
    found = [SideBySide(text, tuple(rows.get(text) for rows in by_text)) for text in texts]
    shared = [one for one in found if len(one.rows) - one.rows.count(None) > 1]
    # A change that is not known comes last.
    return sorted(shared, key=lambda one: (math.isnan(one.change), one.change))


def comparisons(runs: Sequence[RunView]) -> list[tuple[RunView, list[PairedDifference]]]:
    """Returns every run but the first, with its differences from the first."""
    measures = ["objective"]
    if runs[0].judge is not None:
        measures.append(runs[0].judge)
    return [
        (run, [paired_difference(m, run.chosen(m), runs[0].chosen(m)) for m in measures])
        for run in runs[1:]
    ]
