"""Adaptive stopping: any strategy, asked a few drawings at a time, stopped when it is enough.

Source: expected improvement of the next draw under a normal fit (Mockus 1975), weighed
against its cost as in Weitzman's search problem (1979).
Cost: at most the inner strategy's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist, fmean, stdev
from typing import Any

from tts_verifier.errors import InputError
from tts_verifier.interfaces import Strategy
from tts_verifier.registry import builder
from tts_verifier.strategies.shared import positive, within
from tts_verifier.types import Draw, Proposal, Task, Trial


class Adaptive:
    """Stops an inner strategy when a picture is good enough or another is not worth it.

    The inner strategy's rounds are handed out `at_once` proposals at a time; it itself sees
    whole rounds only, as if it ran alone.

    Args:
        strategy: a strategy, or a table of its `name` and arguments.
        thresholds: score name -> least value; a finished picture that reaches all ends the
            search. None = no such end.
        cost: of one more drawing, in units of the objective; the search ends when the
            expected improvement of an independent drawing is less. 0 = no such end.
        least: finished pictures before the cost counts, at least 3.
        at_once: proposals.

    Raises:
        InputError: an argument is not usable.
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
        self.strategy = _built(strategy)
        self.needs = self.strategy.needs
        self.thresholds = {
            name: within(f"thresholds.{name}", value, lambda v: 0 <= v <= 1, rule="in [0, 1]")
            for name, value in (thresholds or {}).items()
        }
        self.cost = within("cost", cost, lambda c: 0 <= c < math.inf, rule="finite, not negative")
        self.least, self.at_once = positive("least", least, 3), positive("at_once", at_once)

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Proposes the next few of the inner strategy's, unless it is enough."""
        finished = [t for t in history if t.finished and not math.isnan(t.objective)]
        if any(self._passes(t) for t in finished) or self._not_worth_it(finished):
            return []
        made = {t.proposal: t for t in history}
        seen: list[Trial] = []
        for number in range(len(history) + 1):
            wanted = self.strategy.propose(task, tuple(seen))
            missing = [p for p in wanted if p not in made]
            if missing or not wanted:
                return missing[: self.at_once]
            seen += [replace(made[p], round=number) for p in wanted]
        return []

    def _passes(self, trial: Trial) -> bool:
        given = trial.scores
        reached = [given.get(name, math.nan) >= v for name, v in self.thresholds.items()]
        return bool(reached) and all(reached)

    def _not_worth_it(self, finished: Sequence[Trial]) -> bool:
        if not self.cost or len(finished) < self.least:
            return False
        return expected_improvement([t.objective for t in finished]) < self.cost


def expected_improvement(values: Sequence[float]) -> float:
    """Returns by how much one more draw of a normal fit to values would exceed the best."""
    mean, spread, top = fmean(values), stdev(values), max(values)
    if spread == 0:
        return 0.0
    z = (mean - top) / spread
    normal = NormalDist()
    return spread * (z * normal.cdf(z) + normal.pdf(z))


def _built(strategy: Strategy | Mapping[str, Any]) -> Strategy:
    if isinstance(strategy, Mapping):
        values = dict(strategy)
        name = values.pop("name", None)
        if not isinstance(name, str):
            raise InputError(
                f"strategy needs a 'name' beside its arguments, got {strategy!r}.",
                argument="strategy",
            )
        try:
            strategy = builder("strategy", name)(**values)
        except TypeError as error:
            raise InputError(
                f"strategy {name!r} cannot be built: {error}.", argument="strategy"
            ) from error
    if not isinstance(strategy, Strategy):
        raise InputError(
            f"strategy must be a strategy or a table, got {strategy!r}.", argument="strategy"
        )
    return strategy
