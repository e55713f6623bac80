"""The budget of every prompt: what it has spent, what is promised, and what still fits.

Candidates and verifier calls are known before a job runs. Network evaluations are not: their
number for a whole image is learned from the first one, and what unfinished jobs will take is
estimated from it. Seconds are known only afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tts_verifier.types import Budget, Continue, Cost, Draw, Job, Look, Repaint, Trial


@dataclass(eq=False)
class Account:
    """What the search for one prompt has spent."""

    candidates: int = 0
    """Generated images."""
    cost: Cost = field(default_factory=Cost)
    promised: dict[str, float] = field(default_factory=dict)
    """Jobs under way, by id, and the share of a whole image's steps that each takes."""

    def spend(self, trial: Trial) -> None:
        """Adds what a trial took."""
        self.candidates += not isinstance(trial.proposal, Look)
        self.cost += trial.cost

    def settle(self, job_id: str) -> None:
        """Ends a promise: the job's trial is there, or the job was dropped."""
        self.promised.pop(job_id, None)


class Budgets:
    """Keeps the searches for all prompts within the budget of each.

    Args:
        limits: of each prompt.
    """

    def __init__(self, limits: Budget) -> None:
        self._limits = limits
        self._whole: float | None = None
        """Network evaluations of a whole image; None until the first trial tells."""

    def left(self, account: Account) -> Budget:
        """Returns what remains for a prompt."""
        return self._limits.left(account.candidates, account.cost)

    def fits(self, account: Account, job: Job) -> bool | None:
        """Says whether a prompt's budget has room for a job; None = not known yet.

        Where evaluations are limited, a prompt has one job under way until the run has learned
        what a whole image takes.
        """
        left = self.left(account)
        if left.spent:
            return False
        if left.network_evaluations is None:
            return True
        if self._whole is None:
            return None if account.promised else True
        share = share_of_steps(job) + sum(account.promised.values())
        # Sums of floats are not exact: 0.3 + 0.7 must be one whole image.
        return share * self._whole <= left.network_evaluations + 1e-6

    def promise(self, account: Account, job: Job) -> None:
        """Reserves what a job will take."""
        account.promised[job.id] = share_of_steps(job)

    def learn(self, job: Job, trial: Trial) -> None:
        """Takes from a trial how many network evaluations a whole image has."""
        spent = trial.cost.network_evaluations
        share = trial.progress if isinstance(job.proposal, Draw) else share_of_steps(job)
        if share > 0 and (spent or not trial.error):
            self._whole = max(self._whole or 0.0, spent / share)


def within(jobs: Sequence[Job], left: Budget) -> list[Job]:
    """Returns the first jobs that the candidates and verifier calls left allow."""
    allowed: list[Job] = []
    candidates = 0
    for job in jobs:
        candidates += not isinstance(job.proposal, Look)
        if left.candidates is not None and candidates > left.candidates:
            break
        if left.verifier_calls is not None and len(allowed) >= left.verifier_calls:
            break
        allowed.append(job)
    return allowed


def share_of_steps(job: Job) -> float:
    """Returns which fraction of a whole image's steps a job takes, before rounding to steps."""
    proposal = job.proposal
    if isinstance(proposal, Draw):
        return proposal.until
    if isinstance(proposal, Continue):
        return proposal.until - job.ancestors[0].progress + proposal.renoise
    return proposal.strength if isinstance(proposal, Repaint) else 0.0
