"""The search for one prompt: its history, and the round that is under way."""

from __future__ import annotations

from dataclasses import dataclass, field

from tts_verifier.log import LoggedPrompt
from tts_verifier.runner.budget import Account, Budgets, within
from tts_verifier.runner.jobs import jobs_for
from tts_verifier.runner.setup import RunSetup
from tts_verifier.types import Job, Look, Prompt, Task, Trial


@dataclass(eq=False)
class PromptSearch:
    """Where the search for one prompt stands."""

    prompt: Prompt
    logged: LoggedPrompt | None
    """What the log holds of it from earlier processes; None without a log."""
    history: list[Trial] = field(default_factory=list)
    """Trials of whole rounds only: a strategy never sees part of a round."""
    account: Account = field(default_factory=Account)
    rounds: int = 0
    """How many rounds were opened."""
    over: bool = False
    """Nothing of the last round fitted into the budget."""
    pending: set[str] = field(default_factory=set)
    """Ids of the open round's jobs that are neither verified nor dropped."""
    jobs: dict[str, Job] = field(default_factory=dict)
    """The open round by id, in the order of its proposals."""
    _trials: dict[str, Trial] = field(default_factory=dict)
    """The verified trials of the open round, by id."""

    def next_round(self, setup: RunSetup, budgets: Budgets) -> list[Job]:
        """Closes the last round and opens the next; an empty one means that the search is over."""
        self._close_round()
        jobs = self._propose(setup, budgets)
        self.jobs = {job.id: job for job in jobs}
        self.pending = set(self.jobs)
        self.rounds += bool(jobs)
        return jobs

    def trial_in_log(self, job: Job) -> Trial | None:
        """Returns the trial that the log holds for a job, None if it holds none."""
        return None if self.logged is None else self.logged.trial(job)

    def add(self, trial: Trial) -> None:
        """Takes a trial of the open round."""
        self._trials[trial.id] = trial
        self.account.spend(trial)
        self._end_job(trial.id)

    def drop(self, job: Job) -> None:
        """Ends a job of the open round without a trial: it does not fit into the budget."""
        self._end_job(job.id)

    def _end_job(self, job_id: str) -> None:
        self.account.settle(job_id)
        self.pending.discard(job_id)

    def _close_round(self) -> None:
        self.history += [self._trials[i] for i in self.jobs if i in self._trials]
        self.over = bool(self.jobs) and not self._trials
        self.jobs, self._trials = {}, {}

    def _propose(self, setup: RunSetup, budgets: Budgets) -> list[Job]:
        left = budgets.left(self.account)
        if left.spent or self.over:
            return []
        supports = frozenset(setup.generator.supports | {Look})
        task = Task(self.prompt, setup.seed, supports, left, setup.objective)
        history = tuple(self.history)
        jobs = jobs_for(
            setup.strategy.propose(task, history),
            task,
            history=history,
            settings=setup.generator.settings,
            strategy=type(setup.strategy).__name__,
            round=self.rounds,
        )
        return within(jobs, left)
