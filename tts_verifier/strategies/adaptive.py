"""Adaptive stopping: runs any strategy a few candidates at a time and stops when it can.

Source: expected improvement of the next draw under a normal fit (Mockus 1975), compared with its
cost as in Weitzman's search problem (1979). Where a verdict says how sure it is, its numbers are
shrunk towards their mean first (James and Stein 1961, Efron and Morris 1973).
Cost: at most that of the inner strategy.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist, fmean
from statistics import variance as variance_of
from typing import Any

from tts_verifier.choice.objective import Objective, sigma_of
from tts_verifier.errors import InputError
from tts_verifier.interfaces import ReadsScores, Reflects, Rewriter, SaysMost, Strategy
from tts_verifier.registry import built
from tts_verifier.strategies.common.arguments import check_integer, check_number
from tts_verifier.types import Draw, Look, Proposal, Task, Trial


class Adaptive:
    """Stops an inner strategy when an image is good enough or the next one is not worth its cost.

    Safe to share between threads: it keeps no state.

    It hands out the rounds of the inner strategy `at_once` proposals at a time. The inner strategy
    sees whole rounds only, as if it ran alone.

    A verdict may have a score `NAME_sigma`, the standard deviation of the score `NAME`. It has two
    effects. A threshold is reached only if NAME - NAME_sigma reaches it. And the expected
    improvement is computed for the true objectives: their variance is that of the objectives minus
    the mean variance of the errors, and each objective is shrunk towards the mean by the share of
    its variance that is error. An unsure verifier therefore neither ends a search by a lucky score
    nor prolongs it by its own noise.

    Args:
        strategy: a strategy, or a table of its `name` and arguments.
        thresholds: score name -> least value; a finished image that reaches all of them ends the
            search. None = no such end.
        cost: the cost of one more draw, in units of the objective; the search ends when the
            expected improvement of an independent draw is less. 0 = no such end.
        least: how many finished images it takes before `cost` has an effect, at least 3.
        at_once: how many proposals to hand out at a time.

    Raises:
        InputError: an argument is out of range.
    """

    needs: frozenset[type] = frozenset({Draw})

    def __init__(
        self,
        strategy: Strategy | Mapping[str, Any],
        thresholds: Mapping[str, float] | None = None,
        *,
        cost: float = 0.0,
        least: int = 4,
        at_once: int = 2,
    ) -> None:
        self.strategy = _build_inner(strategy)
        self.needs = self.strategy.needs
        if thresholds is not None and not isinstance(thresholds, Mapping):
            raise InputError(
                "thresholds must be least values by score name, such as {'overall': 0.9}, got "
                f"{thresholds!r}.",
                argument="thresholds",
            )
        self.thresholds = {
            name: check_number(
                f"thresholds.{name}", value, lambda v: abs(v) < math.inf, rule="a finite number"
            )
            for name, value in (thresholds or {}).items()
        }
        self.cost = check_number(
            "cost", cost, lambda c: 0 <= c < math.inf, rule="finite, not negative"
        )
        self.least = check_integer("least", least, 3)
        self.at_once = check_integer("at_once", at_once)

    @property
    def reads(self) -> Collection[str]:
        """Names of the scores that have a threshold, here or in the inner strategy."""
        inner = self.strategy.reads if isinstance(self.strategy, ReadsScores) else ()
        return dict.fromkeys([*self.thresholds, *inner])

    @property
    def most(self) -> int | None:
        """Finished images at most, None if the inner strategy does not say."""
        return self.strategy.most if isinstance(self.strategy, SaysMost) else None

    @property
    def rewriter(self) -> Rewriter | None:
        """The inner strategy's."""
        return self.strategy.rewriter if isinstance(self.strategy, Reflects) else None

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the next few proposals of the inner strategy, or none to stop.

        It replays the inner strategy from its first round on: a round whose trials are all in the
        history is complete, and the first round that is not is handed out next.
        """
        # A look's scores are on another scale, and its image is counted already.
        drawn = [t for t in history if t.finished and not isinstance(t.proposal, Look)]
        finished = [t for t in drawn if not math.isnan(t.objective)]
        if any(self._passes(t) for t in finished) or self._not_worth_it(task, finished):
            return []
        # A proposal identifies its trial: the inner strategy makes the same ones every time.
        trials = {t.proposal: t for t in history}
        inner_history: list[Trial] = []
        for number in range(len(history) + 1):
            wanted = self.strategy.propose(task, tuple(inner_history))
            missing = [p for p in wanted if p not in trials]
            if missing or not wanted:
                return missing[: self.at_once]
            # The rounds of the inner strategy, not the smaller ones that were handed out.
            inner_history += [replace(trials[p], round=number) for p in wanted]
        return []

    def _passes(self, trial: Trial) -> bool:
        """Returns whether a trial reaches all thresholds; False without thresholds."""
        scores = trial.scores
        return bool(self.thresholds) and all(
            scores.get(name, math.nan) - sigma_of(scores, name) >= least
            for name, least in self.thresholds.items()
        )

    def _not_worth_it(self, task: Task, finished: Sequence[Trial]) -> bool:
        if not self.cost or len(finished) < self.least:
            return False
        objective = task.objective
        known = isinstance(objective, Objective)
        sigmas = [objective.sigma(t.scores) if known else 0.0 for t in finished]  # type: ignore[attr-defined]
        return expected_improvement([t.objective for t in finished], sigmas) < self.cost


def expected_improvement(values: Sequence[float], sigmas: Sequence[float] = ()) -> float:
    """Returns by how much the next draw is expected to exceed the best value, under a normal fit.

    Args:
        values: at least two objectives.
        sigmas: the standard deviation of the error of each; none = they have no error.

    Returns:
        The mean of max(next - best, 0), in units of the objective.
    """
    mean, variance = fmean(values), variance_of(values)
    errors = [s * s for s in sigmas] or [0.0] * len(values)
    # The objectives vary as the images do, and by their errors on top of that.
    true = max(variance - fmean(errors), 0.0)
    if true == 0:
        return 0.0
    spread = math.sqrt(true)
    top = max(
        mean + (value - mean) * true / (true + error)
        for value, error in zip(values, errors, strict=True)
    )
    z = (mean - top) / spread
    normal = NormalDist()
    return spread * (z * normal.cdf(z) + normal.pdf(z))


def _build_inner(strategy: Strategy | Mapping[str, Any]) -> Strategy:
    if isinstance(strategy, Mapping):
        try:
            strategy = built("strategy", strategy)
        except InputError as error:
            # So that a recipe's error names the inner line.
            raise InputError(str(error), argument=f"strategy.{error.argument or ''}") from error
    # A class has the methods too.
    if isinstance(strategy, type) or not isinstance(strategy, Strategy):
        raise InputError(
            f"strategy must be a strategy, such as BestOfN(8), or a table, got {strategy!r}.",
            argument="strategy",
        )
    return strategy
