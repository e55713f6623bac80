"""The first pictures of a report: the prompts that a search changed most, worst first."""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass
from typing import Final

from tts_verifier.analysis.report.cards import PromptView, ScoreLine
from tts_verifier.analysis.report.sources import ShownImage, Source, shown_image
from tts_verifier.types import Prompt, Trial

TILES: Final = 8
"""The most prompts of a strip."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One prompt of the strip."""

    anchor: str
    """As in `PromptView`."""
    page: int
    """The number of the page that has the prompt."""
    prompt: Prompt
    first: ShownImage | None
    chosen: ShownImage | None
    objective: ScoreLine
    judge: ScoreLine | None
    """The judge's main score; None without one."""


class Strip:
    """Keeps the prompts of a run that changed most. Not for sharing between threads.

    First come the prompts that lost something, by the judge's main score or by the objective, the
    greatest loss first; then the others, the greatest gain first.

    Args:
        source: finds the addresses of images on the main page.
        judge: the judge's main score; None without one.
    """

    def __init__(self, source: Source, judge: str | None) -> None:
        self._source, self._judge = source, judge
        self._best: list[tuple[tuple[bool, float, int], Tile]] = []
        self._offered = 0

    @property
    def tiles(self) -> list[Tile]:
        """The prompts so far, in the order in which they are shown."""
        return [tile for _, tile in self._best]

    def offer(self, view: PromptView, page: int) -> None:
        """Takes a prompt in if it changed more than the last one of the strip."""
        self._offered += 1
        if view.first is None or view.chosen is None or not view.lines:
            return
        lines = {line.name: line for line in view.lines}
        objective, judge = view.lines[0], lines.get(f"judge: {self._judge}")
        changes = [line.change for line in (objective, judge) if line]
        loss = min((change for change in changes if change < 0), default=0.0)
        gain = objective.change if math.isfinite(objective.change) else 0.0
        # Equal ones stay in the order of the run.
        key = (loss == 0, loss or -gain, self._offered)
        if len(self._best) == TILES and key > self._best[-1][0]:
            return
        trials = (view.first.trial, view.chosen.trial)
        self._source.prepare(trials)
        first, chosen = (self._shown(trial) for trial in trials)
        tile = Tile(view.anchor, page, view.prompt, first, chosen, objective, judge)
        insort(self._best, (key, tile), key=lambda entry: entry[0])
        del self._best[TILES:]

    def _shown(self, trial: Trial) -> ShownImage | None:
        return shown_image(trial, self._source, None)
