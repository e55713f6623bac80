"""Two small strategies whose rounds can be counted by hand."""

from collections.abc import Sequence

import numpy as np

from tts_verifier.choice.objective import order
from tts_verifier.identity import seed_for
from tts_verifier.types import (
    Continue,
    Draw,
    Look,
    Mask,
    Proposal,
    Repaint,
    Task,
    Trial,
)


def best(trials: Sequence[Trial], count: int = 1) -> list[Trial]:
    return [trials[i] for i in order([t.objective for t in trials])[:count]]


class SeedBeam:
    """Draws `width` previews and continues the better half, in two branches each, to the end."""

    needs: frozenset[type] = frozenset({Draw, Continue})

    def __init__(self, width: int = 4, stops: tuple[float, ...] = (0.4, 0.7, 1.0)) -> None:
        self.width, self.stops = width, stops

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        level = 1 + max((t.round for t in history), default=-1)
        if level == len(self.stops):
            return []
        until, text = self.stops[level], task.prompt.text
        if level == 0:
            return [Draw(seed_for(task.seed, text, i), until) for i in range(self.width)]
        survivors = best([t for t in history if t.round == level - 1], self.width // 2)
        seeds = [seed_for(task.seed, text, i, f"branch{level}") for i in range(2)]
        return [Continue(t.id, until, s, renoise=0.1) for t in survivors for s in seeds]


class InpaintReroll:
    """Draws a few images, looks at the best in full and repaints its flaws."""

    needs: frozenset[type] = frozenset({Draw, Look, Repaint})

    def __init__(self, n: int = 3, repaints: int = 2) -> None:
        self.n, self.repaints = n, repaints

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        text = task.prompt.text
        if not history:
            return [Draw(seed_for(task.seed, text, i)) for i in range(self.n)]
        looks = [t for t in history if isinstance(t.proposal, Look)]
        if not looks:
            return [Look(best(history)[0].id)]
        if any(isinstance(t.proposal, Repaint) for t in history):
            return []
        heatmap = looks[-1].verdict.heatmaps["misalignment"]
        mask = Mask.of(heatmap > np.median(heatmap))
        seeds = [seed_for(task.seed, text, i, "repaint") for i in range(self.repaints)]
        return [Repaint(looks[-1].id, mask, s, strength=0.8) for s in seeds]
