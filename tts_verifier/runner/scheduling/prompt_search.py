"""The search for one prompt: its history and its open round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tts_verifier.choice.objective import choose, with_objectives
from tts_verifier.choice.tournament import near_ties
from tts_verifier.identity import seed_of_repeat
from tts_verifier.log import LoggedPrompt
from tts_verifier.runner.result import PromptResult
from tts_verifier.runner.scheduling.budget import Account, Budgets, affordable_jobs
from tts_verifier.runner.scheduling.jobs import jobs_for
from tts_verifier.runner.setup import RunSetup, calls_of_ties
from tts_verifier.types import (
    VERIFIES_ONLY,
    Budget,
    Compare,
    Job,
    Look,
    Prompt,
    Proposal,
    Task,
    Trial,
    parent_of,
)


@dataclass(eq=False)
class PromptSearch:
    """The state of the search for one prompt. Belongs to the thread that runs the loop."""

    prompt: Prompt
    """The prompt."""
    logged: LoggedPrompt | None
    """The prompt's rows of earlier processes; None if the run has no log."""
    history: list[Trial] = field(default_factory=list)
    """The trials of closed rounds: a strategy never sees part of a round."""
    account: Account = field(default_factory=Account)
    """What the search has spent."""
    rounds: int = 0
    """The number of rounds opened so far."""
    over: bool = False
    """Whether the budget had no room for any job of the last round."""
    looked: bool = False
    """Whether the strategy has ended, and the run looked at the best images."""
    compared: bool = False
    """Whether the run has also compared the best images."""
    pending: set[str] = field(default_factory=set)
    """Ids of the open round's jobs that are neither verified nor dropped."""
    jobs: dict[str, Job] = field(default_factory=dict)
    """The open round's jobs by id, in the order of the proposals."""
    _trials: dict[str, Trial] = field(default_factory=dict)
    """The open round's verified trials by id."""

    def next_round(self, setup: RunSetup, budgets: Budgets) -> list[Job]:
        """Closes the last round and opens the next; returns its jobs, none when it is over."""
        self.close_round(setup)
        jobs = [] if self.looked else self._propose(setup, budgets)
        if not jobs and not self.looked:
            jobs, self.looked = self._look_at_best(setup, budgets), True
        if not jobs and not self.compared:
            jobs, self.compared = self._compare_best(setup, budgets), True
        self.jobs = {job.id: job for job in jobs}
        self.pending = set(self.jobs)
        self.rounds += bool(jobs)
        return jobs

    def result(self, setup: RunSetup) -> PromptResult:
        """Returns the result of the finished search."""
        logged, relative = self.logged is not None, setup.objective.relative
        return PromptResult.of(self.prompt, self.history, logged=logged, relative=relative)

    def trial_in_log(self, job: Job) -> Trial | None:
        """Returns a job's trial from the log, None if it is not there."""
        return None if self.logged is None else self.logged.trial(job)

    def add(self, trial: Trial) -> None:
        """Adds a trial of the open round."""
        self._trials[trial.id] = trial
        self.account.spend(trial)
        self._end_job(trial.id)

    def drop(self, job: Job) -> None:
        """Drops a job of the open round that the budget has no room for."""
        self._end_job(job.id)

    def _end_job(self, job_id: str) -> None:
        self.account.settle(job_id)
        self.pending.discard(job_id)

    def close_round(self, setup: RunSetup) -> None:
        """Moves the open round's trials into the history."""
        # Trials come in the order of batches; the history has the order of the proposals.
        self.history += [self._trials[i] for i in self.jobs if i in self._trials]
        self.history = with_objectives(self.history, setup.objective)
        # The strategy would propose the same round again for ever.
        self.over = bool(self.jobs) and not self._trials
        self.jobs, self._trials = {}, {}

    def _propose(self, setup: RunSetup, budgets: Budgets) -> list[Job]:
        left = budgets.left(self.account)
        if left.verifier_calls is not None:
            # Looks and comparisons at the end have their calls for certain.
            reserved = setup.looks + calls_of_ties(setup.ties)
            left = replace(left, verifier_calls=max(left.verifier_calls - reserved, 0))
        if left.spent or self.over:
            return []
        task = self._task(setup, left)
        proposals = setup.strategy.propose(task, tuple(self.history))
        return affordable_jobs(self._bind(proposals, task, setup), left)

    def _look_at_best(self, setup: RunSetup, budgets: Budgets) -> list[Job]:
        """Returns looks at the best images of a search that has ended, but at none twice."""
        left = budgets.left_to_verify(self.account)
        if not setup.looks or left.spent:
            return []
        order = choose(self.history).order
        looked = {t.proposal.parent for t in self.history if isinstance(t.proposal, Look)}
        unseen = [t for t in order if not isinstance(t.proposal, Look) and t.id not in looked]
        jobs = self._bind([Look(t.id) for t in unseen], self._task(setup, left), setup)
        best = {t.id for t in order[: setup.looks]}
        # A run that is continued with more candidates may have looked at others before. Readers of
        # the log see these looks, so the choice counts them too.
        logged = self.logged or ()
        jobs = [job for job in jobs if parent_of(job.proposal) in best or job.id in logged]
        return affordable_jobs(jobs, left)

    def _compare_best(self, setup: RunSetup, budgets: Budgets) -> list[Job]:
        """Returns comparisons of the best images of a search that has ended, of none twice."""
        left = budgets.left_to_verify(self.account)
        if not setup.ties or left.spent:
            return []
        pairs = near_ties(choose(self.history).order, setup.ties, near=setup.near)
        done = {
            (t.proposal.parent, t.proposal.rival)
            for t in self.history
            if isinstance(t.proposal, Compare)
        }
        proposals = [Compare(*pair) for pair in pairs if not {pair, pair[::-1]} & done]
        return affordable_jobs(self._bind(proposals, self._task(setup, left), setup), left)

    def _task(self, setup: RunSetup, left: Budget) -> Task:
        # The runner serves the others itself, with any generator.
        supports = frozenset(setup.generator.supports.union(VERIFIES_ONLY))
        seed = seed_of_repeat(setup.seed, self.prompt.text, self.prompt.repeat)
        return Task(self.prompt, seed, supports, left, setup.objective)

    def _bind(self, proposals: Sequence[Proposal], task: Task, setup: RunSetup) -> list[Job]:
        return jobs_for(
            proposals,
            task,
            history=self.history,
            settings=setup.generator.settings,
            strategy=type(setup.strategy).__name__,
            round=self.rounds,
        )
