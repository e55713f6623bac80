"""Evaluations with held-out captions and held-out judges, and the rules that stop a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from tts_verifier.errors import RunError, RunWarning
from tts_verifier.training.flow.rewards import (
    LoadedVerifier,
    WeightedRewards,
    distinct_names,
    reason_of,
)
from tts_verifier.training.flow.sampling import Sampler

HELD = "held_"
"""Metrics of evaluations begin so."""
_PATIENCE = 3
"""Steps in a row that must break a rule: single steps are noisy."""
_FIRST_STEPS = 5
"""Steps at the start whose gradients count for nothing: the first captions may be easy."""


class Evaluation:
    """Draws held-out captions once each, and lets rewards and judges say how good they are.

    Args:
        sampler: with the weights to evaluate.
        captions: held-out ones.
        rewards: of the run.
        judges: verifiers that are never trained on.
        seed: of the pictures, which begin with the same noise in every evaluation.
    """

    def __init__(
        self,
        sampler: Sampler,
        captions: Sequence[str],
        rewards: WeightedRewards,
        judges: Sequence[LoadedVerifier],
        seed: int,
    ) -> None:
        self._sampler, self._captions, self._seed = sampler, captions, seed
        self._rewards, self._judges = rewards, judges

    def warm_up(self) -> None:
        """Draws once, so that on a GPU the graph is captured before other threads work."""
        self._sampler.draw(self._captions[:1], 1, self._seed)

    def __call__(self) -> dict[str, float]:
        """Returns the means: `held_reward` and `held_NAME` of each judge."""
        images = self._sampler.draw(self._captions, 1, self._seed).images
        found = {f"{HELD}reward": mean_of(self._rewards(images, self._captions).rewards)}
        names = distinct_names([judge.spec.verifier for judge in self._judges])
        for name, judge in zip(names, self._judges, strict=True):
            verdicts = judge.verify(images, self._captions)
            objectives = judge.objectives(verdicts)
            found[HELD + name] = mean_of(objectives)
            if np.isnan(objectives).all():
                warnings.warn(
                    f"The judge {name} gives no held-out picture its objective; of one it says "
                    f"{reason_of([verdicts], [objectives])!r:.300}.",
                    RunWarning,
                    stacklevel=2,
                )
        return found


def mean_of(values: Sequence[float] | np.typing.NDArray[np.float64]) -> float:
    """Returns the mean of what is known, NaN if nothing is."""
    known = np.asarray(values)[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def broken_rule(
    stop: Mapping[str, float], rows: Sequence[Mapping[str, float]], judge: str | None
) -> RunError | None:
    """Returns the error of a rule that the metrics of a run break, None if none is broken.

    The rules:

    - `gradient`: in three steps in a row the norm is above so many times the least so far.
    - `judge`: in each of so many evaluations in a row the reward rose, and the judge was never
      above where it had been before them. A reward that has stopped rising goes up and down by
      chance.
    - `kl`, `unscored_share`: in three steps in a row above the limit.

    Args:
        stop: rule -> limit.
        rows: the metrics of all steps so far.
        judge: the judge that `judge` watches.
    """
    if not rows:
        return None
    step = int(rows[-1]["step"])
    for rule, limit in stop.items():
        if rule == "judge":
            problem = _judge_fell_behind(rows, int(limit), judge)
        elif rule == "gradient":
            problem = _gradient_left(rows, limit)
        else:
            last = [row.get(rule) or 0.0 for row in rows[-_PATIENCE:]]
            above = len(last) == _PATIENCE and min(last) > limit
            problem = f"{rule} was above it, at last {last[-1]:g}" if above else None
        if problem is not None:
            return RunError(
                f"stop.{rule} is {limit:g}, and at step {step} {problem}. State, metrics and "
                "checkpoint are kept. Lower learning_rate, or hold the policy nearer: raise kl, "
                "pull or base_pull."
            )
    return None


def _gradient_left(rows: Sequence[Mapping[str, float]], limit: float) -> str | None:
    norms = [row["gradient"] for row in rows[_FIRST_STEPS:] if row["gradient"] > 0]
    if len(norms) <= _PATIENCE:
        return None
    least = min(norms[:-_PATIENCE])
    if min(norms[-_PATIENCE:]) <= limit * least:
        return None
    return f"the gradient's norm was {norms[-1]:g}, the least before {least:g}"


def _judge_fell_behind(
    rows: Sequence[Mapping[str, float]], evaluations: int, judge: str | None
) -> str | None:
    name = f"{HELD}{judge}"
    known = [row for row in rows if row.get(name) is not None]
    if len(known) <= evaluations:
        return None
    rewards = [row[f"{HELD}reward"] for row in known[-evaluations - 1 :]]
    first, *later = [row[name] for row in known[-evaluations - 1 :]]
    # An evaluation that knows no reward, or no verdict of the judge, has NaN, and says neither.
    rises = all(b > a for a, b in pairwise(rewards))
    if not (rises and all(value <= first for value in later)):
        return None
    return (
        f"the reward of held-out captions had risen by {rewards[-1] - rewards[0]:.3f} in "
        f"{evaluations} evaluations, and {judge} had changed by {later[-1] - first:.3f}"
    )
