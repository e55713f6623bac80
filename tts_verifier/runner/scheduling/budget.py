"""Keeps each prompt within its budget.

The candidates and verifier calls of a job are known before it runs. Its network evaluations are
not: the first image of a run shows how many a whole image takes, and those of other jobs are
estimated from that. Seconds are known only afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tts_verifier.types import (
    VERIFIES_ONLY,
    Budget,
    Compare,
    Continue,
    Cost,
    Draw,
    Job,
    Repaint,
    Rewrite,
    Trial,
)

_CALLS: Final = {Compare: 2, Rewrite: 0}
"""Verifier calls of the kinds that do not take one: a comparison asks in both orders."""


@dataclass(eq=False)
class Account:
    """What the search for one prompt has spent, and what its jobs under way will take."""

    candidates: int = 0
    """Generated images."""
    cost: Cost = field(default_factory=Cost)
    """The sum over its trials."""
    promised: dict[str, float] = field(default_factory=dict)
    """For each job under way, by id, the share of a whole image's steps that it takes."""

    def spend(self, trial: Trial) -> None:
        """Adds the cost of a trial."""
        self.candidates += not isinstance(trial.proposal, VERIFIES_ONLY)
        self.cost += trial.cost

    def settle(self, job_id: str) -> None:
        """Releases what was reserved for a job that became a trial or was dropped."""
        self.promised.pop(job_id, None)


class Budgets:
    """Says which jobs still fit into the budgets of their prompts.

    Args:
        limits: the budget of each prompt.
    """

    def __init__(self, limits: Budget) -> None:
        self._limits = limits
        self._whole: float | None = None
        """Network evaluations of a whole image; None until the first trial shows them."""

    def left(self, account: Account) -> Budget:
        """Returns what remains for a prompt."""
        return self._limits.left(account.candidates, account.cost)

    def left_to_verify(self, account: Account) -> Budget:
        """Returns what remains of the limits that concern looks, which generate nothing."""
        left = self.left(account)
        return Budget(verifier_calls=left.verifier_calls, seconds=left.seconds)

    def fits(self, account: Account, job: Job) -> bool | None:
        """Returns whether a prompt can afford a job; None = unknown until a trial is verified.

        Where evaluations are limited, a prompt has a single job under way until the run has
        learned what a whole image takes.
        """
        if isinstance(job.proposal, VERIFIES_ONLY):
            return not self.left_to_verify(account).spent
        left = self.left(account)
        if left.spent:
            return False
        if left.network_evaluations is None:
            return True
        if self._whole is None:
            return None if account.promised else True
        share = share_of_steps(job) + sum(account.promised.values())
        # Sums of floats are not exact: shares of 0.1 and 0.2 must not take more than 0.3.
        return share * self._whole <= left.network_evaluations + 1e-6

    def promise(self, account: Account, job: Job) -> None:
        """Reserves what a job will take."""
        account.promised[job.id] = share_of_steps(job)

    def learn(self, job: Job, trial: Trial) -> None:
        """Learns from a trial how many network evaluations a whole image takes."""
        spent = trial.cost.network_evaluations
        # A draw's progress is exact, in whole steps. The progress of a continuation includes its
        # parent's, and that of a repaint is 1, so their share comes from the proposal.
        share = trial.progress if isinstance(job.proposal, Draw) else share_of_steps(job)
        # A trial that failed before its first step says nothing.
        if share > 0 and (spent or not trial.error):
            # The largest value seen: too small a one would let later jobs exceed the budget.
            self._whole = max(self._whole or 0.0, spent / share)


def affordable_jobs(jobs: Sequence[Job], left: Budget) -> list[Job]:
    """Returns the first jobs, as many as the remaining candidates and verifier calls allow."""
    allowed: list[Job] = []
    candidates = calls = 0
    for job in jobs:
        candidates += not isinstance(job.proposal, VERIFIES_ONLY)
        calls += _CALLS.get(type(job.proposal), 1)
        if left.candidates is not None and candidates > left.candidates:
            break
        if left.verifier_calls is not None and calls > left.verifier_calls:
            break
        allowed.append(job)
    return allowed


def share_of_steps(job: Job) -> float:
    """Returns the fraction of a whole image's steps that a job takes, not rounded to steps."""
    proposal = job.proposal
    if isinstance(proposal, Draw):
        return proposal.until
    if isinstance(proposal, Continue):
        return proposal.until - job.ancestors[0].progress + proposal.renoise
    return proposal.strength if isinstance(proposal, Repaint) else 0.0
