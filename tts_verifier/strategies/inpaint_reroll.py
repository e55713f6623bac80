"""Rerolls the flaw: draws a few, repaints the best where its maps are hot, keeps what is better.

Source: ImageDoctor's heatmaps (arXiv 2510.01010) as masks; the accept gate is ours.
Cost: n drawings, then a round each strength's share of a drawing for every strength (a whole
one where no place can be named) and `fresh` drawings, and as many verifier calls; a look more
for a base whose maps are not known yet.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tts_verifier.errors import InputError
from tts_verifier.masks import MaskRule, flaw_mask, spots
from tts_verifier.strategies.shared import best, positive, rounds, seeds, within
from tts_verifier.types import Draw, Look, Mask, Proposal, Repaint, Task, Trial


class InpaintReroll:
    """Repaints the flaws of the best so far, round after round.

    A repaint is accepted, and may be repainted in its turn, when its objective exceeds its
    parent's by more than `gain` and, where both have maps, the masked part is no hotter. A
    picture is repainted in one round only; then the next best has its turn. Where the verifier
    names no place in the best, or all of it is wrong, the round draws afresh instead; a
    verifier that gives neither maps nor boxes is warned about.

    Args:
        n: drawings to begin with.
        rounds: of repaints.
        strengths: one repaint of a round for each, in (0, 1]. Where a mask has several spots,
            the first takes the hottest spot alone, the second all of them, and so in turn: one
            thing too many is gone when one is, a relation may need both its things.
        fresh: drawings in every round, for what no repaint mends, such as a wrong layout.
        enough: the objective at which the best is left alone and the search ends; None = never.
        gain: not negative.
        masks: arguments of `regions.MaskRule`.

    Raises:
        InputError: an argument is not usable.
    """

    needs: frozenset[type] = frozenset({Draw, Look, Repaint})

    def __init__(
        self,
        n: int = 4,
        rounds: int = 2,
        *,
        strengths: Sequence[float] = (1.0, 0.8),
        fresh: int = 1,
        enough: float | None = None,
        gain: float = 0.0,
        masks: Mapping[str, Any] | None = None,
    ) -> None:
        self.n, self.rounds = positive("n", n), positive("rounds", rounds)
        if not strengths:
            raise InputError(
                "strengths must name at least one strength, got none.", argument="strengths"
            )
        self.strengths = tuple(
            within("strengths", s, lambda s: 0 < s <= 1, rule="in (0, 1]") for s in strengths
        )
        self.fresh = positive("fresh", fresh, 0)
        self.enough = enough
        if enough is not None:
            within("enough", enough, lambda e: -np.inf < e < np.inf, rule="a finite number")
        self.gain = within("gain", gain, lambda g: 0 <= g < np.inf, rule="finite and not negative")
        try:
            self.rule = MaskRule(**(masks or {}))
        except TypeError as error:
            raise InputError(
                f"masks must be arguments of MaskRule: {error}.", argument="masks"
            ) from error

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the drawings, then a look or repaints, until the rounds are over."""
        if not history:
            return [Draw(seed) for seed in seeds(task, self.n)]
        done = rounds(history)
        if done > self.rounds or self._satisfied(history):
            return []
        looks = {t.proposal.parent: t for t in history if isinstance(t.proposal, Look)}
        base = self._base(history, looks)
        count = len(self.strengths)
        masks: list[Mask] = []
        if base is not None:
            seen = looks.get(base.id, base)
            if seen.detail == "score":
                return [Look(base.id)]
            masks = self._masks(seen)
        first = sum(isinstance(t.proposal, Draw) for t in history)
        if base is None or not masks:
            return [Draw(seed) for seed in seeds(task, count + self.fresh, first=first)]
        again = zip(seeds(task, count, purpose=f"repaint{done}"), self.strengths, strict=True)
        return [
            *(Repaint(base.id, masks[i % len(masks)], *which) for i, which in enumerate(again)),
            *(Draw(seed) for seed in seeds(task, self.fresh, first=first)),
        ]

    def _satisfied(self, history: Sequence[Trial]) -> bool:
        top = next(iter(best([t for t in history if t.finished])), None)
        return self.enough is not None and top is not None and top.objective >= self.enough

    def _base(self, history: Sequence[Trial], looks: Mapping[str, Trial]) -> Trial | None:
        """Returns the best picture that was accepted and whose turn has not been."""
        trials = {t.id: t for t in history if not isinstance(t.proposal, Look)}
        tried = {t.proposal.parent for t in history if isinstance(t.proposal, Repaint)}
        pool = [
            t
            for t in trials.values()
            if t.finished and t.id not in tried
            if not isinstance(t.proposal, Repaint)
            or accepted(t, _seen(trials[t.proposal.parent], looks), self.gain)
        ]
        return next(iter(best(pool)), None)

    def _masks(self, seen: Trial) -> list[Mask]:
        """Returns the hottest spot and all spots, or the only one; none where to draw afresh."""
        if not seen.heatmaps and not seen.boxes:
            warnings.warn(
                "InpaintReroll needs a verifier that gives heatmaps or boxes, this one gave "
                "neither: drawing afresh instead of repainting.",
                stacklevel=3,
            )
            return []
        if seen.image is None:
            return []
        maps = [_map(seen, name) for name in sorted(seen.heatmaps)]
        size = seen.image.load().size
        whole = flaw_mask(maps, seen.boxes, size=size, rule=self.rule)
        if whole is None:
            return []
        parts = spots(whole, maps)
        return [parts[0], whole] if len(parts) > 1 else [whole]


def accepted(child: Trial, parent: Trial, gain: float) -> bool:
    """Says whether a repaint is better than its parent, and no hotter where it was repainted."""
    if not isinstance(child.proposal, Repaint) or not child.objective > parent.objective + gain:
        return False
    inside = child.proposal.mask.array()
    common = sorted(set(child.heatmaps) & set(parent.heatmaps))
    heats = [
        sum(float(_map(trial, name)[inside].mean()) for name in common) for trial in (child, parent)
    ]
    return heats[0] <= heats[1]


def _seen(trial: Trial, looks: Mapping[str, Trial]) -> Trial:
    return looks.get(trial.id, trial)


def _map(trial: Trial, name: str) -> NDArray[np.float32]:
    return trial.heatmaps[name].load().on_image()
