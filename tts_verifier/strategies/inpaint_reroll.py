"""Rerolls the flaw: draws a few, repaints the best where its maps are hot, keeps what is better.

Source: ImageDoctor's heatmaps (arXiv 2510.01010) as masks; the accept gate is ours.
Cost: n drawings, then a round each strength's share of a drawing for every strength (a whole
one where no place can be named), and as many verifier calls; a look more for a base whose
maps are not known yet.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tts_verifier.errors import InputError
from tts_verifier.regions import MaskRule, flaw_mask
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
        strengths: one repaint of a round for each, in (0, 1].
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
        strengths: Sequence[float] = (0.6, 0.8, 1.0),
        gain: float = 0.0,
        masks: Mapping[str, Any] | None = None,
    ) -> None:
        self.n, self.rounds = positive("n", n), positive("rounds", rounds)
        if not strengths:
            raise InputError("strengths must name at least one strength, got none.")
        self.strengths = tuple(
            within("strengths", s, lambda s: 0 < s <= 1, rule="in (0, 1]") for s in strengths
        )
        self.gain = within("gain", gain, lambda g: 0 <= g < np.inf, rule="finite and not negative")
        try:
            self.rule = MaskRule(**(masks or {}))
        except TypeError as error:
            raise InputError(f"masks must be arguments of MaskRule: {error}.") from error

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the drawings, then a look or repaints, until the rounds are over."""
        if not history:
            return [Draw(seed) for seed in seeds(task, self.n)]
        done = rounds(history)
        if done > self.rounds:
            return []
        looks = {t.proposal.parent: t for t in history if isinstance(t.proposal, Look)}
        base = self._base(history, looks)
        count = len(self.strengths)
        mask = None
        if base is not None:
            seen = looks.get(base.id, base)
            if seen.detail == "score":
                return [Look(base.id)]
            mask = self._mask(seen)
        if base is None or mask is None:
            first = sum(isinstance(t.proposal, Draw) for t in history)
            return [Draw(seed) for seed in seeds(task, count, first=first)]
        fresh = seeds(task, count, purpose=f"repaint{done}")
        return [
            Repaint(base.id, mask, seed, strength)
            for seed, strength in zip(fresh, self.strengths, strict=True)
        ]

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

    def _mask(self, seen: Trial) -> Mask | None:
        if not seen.heatmaps and not seen.boxes:
            warnings.warn(
                "InpaintReroll needs a verifier that gives heatmaps or boxes, this one gave "
                "neither: drawing afresh instead of repainting.",
                stacklevel=3,
            )
            return None
        maps = [_map(seen, name) for name in sorted(seen.heatmaps)]
        if seen.image is None:
            return None
        return flaw_mask(maps, seen.boxes, size=seen.image.load().size, rule=self.rule)


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
