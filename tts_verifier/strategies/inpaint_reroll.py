"""Rerolls the flaw: repaints the best image where its heatmaps are hot, and keeps improvements.

Source: ImageDoctor's heatmaps (arXiv 2510.01010) as masks; the test for accepting a repaint is
ours.
Cost: n draws. Then, in every round, the share `strength` of a draw for each strength (a whole draw
if no place can be named), `fresh` draws, and as many verifier calls. An image to repaint whose
heatmaps are not known yet costs one look more.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from tts_verifier.errors import InputError
from tts_verifier.strategies.common.arguments import check_integer, check_items, check_number
from tts_verifier.strategies.common.history import best, rounds_done, seeds
from tts_verifier.strategies.common.masks import MaskRule, flaw_mask, spots
from tts_verifier.types import Draw, Look, Mask, Proposal, Repaint, Task, Trial


class InpaintReroll:
    """Repaints the flaws of the best image so far, round after round.

    Safe to share between threads: it keeps no state.

    A repaint is accepted if its objective exceeds its parent's by more than `gain` and, where both
    have heatmaps, its masked part is no hotter. Accepted repaints may be repainted in turn. An
    image is repainted in one round only; the next round takes the next best. If the verifier
    names no place in the best image, or all of it is flawed, the round draws new images instead. A
    verifier that gives neither heatmaps nor boxes causes a warning.

    A run with detail "score" diagnoses an image just before it is repainted. Quick scores are only
    compared with quick scores, and diagnoses with diagnoses.

    Args:
        n: draws of the first round.
        rounds: rounds of repaints.
        strengths: one repaint per round for each, in (0, 1]. If a mask has several spots, the
            first repaint takes the hottest spot alone, the second all of them, and so in turn:
            removing a surplus object needs one spot, mending a relation may need both objects.
        fresh: draws in every round, for what no repaint mends, such as a wrong layout.
        enough: the search ends when the best objective reaches it; None = never.
        gain: not negative.
        masks: arguments of `MaskRule` (`strategies/common/masks.py`).

    Raises:
        InputError: an argument is out of range.
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
        self.n, self.rounds = check_integer("n", n), check_integer("rounds", rounds)
        strengths = check_items("strengths", strengths, "numbers in (0, 1]")
        if not strengths:
            raise InputError(
                "strengths must name at least one strength, got none.", argument="strengths"
            )
        self.strengths = tuple(
            check_number("strengths", s, lambda s: 0 < s <= 1, rule="in (0, 1]") for s in strengths
        )
        self.fresh = check_integer("fresh", fresh, 0)
        self.enough = enough
        if enough is not None:
            self.enough = check_number(
                "enough", enough, lambda e: -math.inf < e < math.inf, rule="a finite number"
            )
        self.gain = check_number(
            "gain", gain, lambda g: 0 <= g < math.inf, rule="finite and not negative"
        )
        try:
            self.rule = MaskRule(**(masks or {}))
        except TypeError as error:
            raise InputError(
                f"masks must be arguments of MaskRule: {error}.", argument="masks"
            ) from error

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the draws, then a look or repaints, until the rounds are over."""
        if not history:
            return [Draw(seed) for seed in seeds(task, self.n)]
        done = rounds_done(history)
        if done > self.rounds or self._satisfied(history):
            return []
        looks = {t.proposal.parent: t for t in history if isinstance(t.proposal, Look)}
        base = self._base(history, looks)
        masks: list[Mask] = []
        if base is not None:
            looked = looks.get(base.id, base)
            # A quick score has no heatmaps; only the image to repaint is worth the full reply.
            if looked.verdict is not None and looked.verdict.detail == "score":
                return [Look(base.id)]
            masks = self._masks(looked)
        count = len(self.strengths)
        # Fresh draws take the seeds after those that are used, so no image is drawn twice.
        first = sum(isinstance(t.proposal, Draw) for t in history)
        if base is None or not masks:
            return [Draw(seed) for seed in seeds(task, count + self.fresh, first=first)]
        repaint_seeds = seeds(task, count, purpose=f"repaint{done}")
        pairs = zip(repaint_seeds, self.strengths, strict=True)
        return [
            *(
                Repaint(base.id, masks[i % len(masks)], seed, strength)
                for i, (seed, strength) in enumerate(pairs)
            ),
            *(Draw(seed) for seed in seeds(task, self.fresh, first=first)),
        ]

    def _satisfied(self, history: Sequence[Trial]) -> bool:
        # The scores of a look are on another scale than quick ones.
        drawn = [t for t in history if t.finished and not isinstance(t.proposal, Look)]
        top = next(iter(best(drawn)), None)
        return self.enough is not None and top is not None and top.objective >= self.enough

    def _base(self, history: Sequence[Trial], looks: Mapping[str, Trial]) -> Trial | None:
        """Returns the best draw or accepted repaint that was not repainted yet."""
        trials = {t.id: t for t in history if not isinstance(t.proposal, Look)}
        repainted = {t.proposal.parent for t in history if isinstance(t.proposal, Repaint)}
        candidates = [
            t
            for t in trials.values()
            if t.finished and t.id not in repainted
            if not isinstance(t.proposal, Repaint)
            or accepted(t, trials[t.proposal.parent], self.gain, looks)
        ]
        return next(iter(best(candidates)), None)

    def _masks(self, trial: Trial) -> list[Mask]:
        """Returns the masks that repaints take in turn.

        Args:
            trial: with its full verdict.

        Returns:
            The hottest spot and all spots, or the only spot; none where a fresh draw is better.
        """
        verdict = trial.verdict
        if verdict is None or not (verdict.heatmaps or verdict.boxes):
            warnings.warn(
                "InpaintReroll needs a verifier that gives heatmaps or boxes, this one gave "
                "neither: drawing new images instead of repainting.",
                stacklevel=3,
            )
            return []
        if trial.size is None:
            return []
        # The order must not depend on the verifier's: sums of floats would differ.
        heatmaps = [verdict.heatmaps[name] for name in sorted(verdict.heatmaps)]
        whole = flaw_mask(heatmaps, verdict.boxes, size=trial.size, rule=self.rule)
        if whole is None:
            return []
        parts = spots(whole, heatmaps)
        return [parts[0], whole] if len(parts) > 1 else [whole]


def accepted(
    child: Trial, parent: Trial, gain: float, looks: Mapping[str, Trial] | None = None
) -> bool:
    """Returns whether a repaint is better than its parent, and no hotter where it was repainted.

    Args:
        child: the repaint.
        parent: the image that was repainted.
        gain: the least difference of the objectives, exclusive.
        looks: trial id -> the look at that trial. They count if both images were looked at: a
            quick score is not compared with a diagnosis.
    """
    if not isinstance(child.proposal, Repaint):
        return False
    mask = child.proposal.mask
    both = [look for t in (child, parent) if (look := (looks or {}).get(t.id)) and look.finished]
    child, parent = both if len(both) == 2 else (child, parent)
    if not child.objective > parent.objective + gain:
        return False
    if child.verdict is None or parent.verdict is None:
        return True
    heatmaps = (child.verdict.heatmaps, parent.verdict.heatmaps)
    common = sorted(set(heatmaps[0]) & set(heatmaps[1]))
    child_heat, parent_heat = (
        sum(maps.on_grid(name).mean_inside(mask) for name in common) for maps in heatmaps
    )
    return child_heat <= parent_heat
