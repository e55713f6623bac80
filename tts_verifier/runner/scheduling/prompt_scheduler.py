"""Decides which prompt proposes next, and which jobs make up the next batch.

A prompt proposes once its whole last round is verified, while no batch is full. Batches therefore
fill up from all open prompts, and no slow prompt delays the others. Open prompts come before new
ones, which keeps the number of open prompts small. New prompts with few rows in the log come
before those with many, so that a continued run generates at once. A strategy sees whole rounds
only, in the order of its proposals. A trial that is in the log already is taken from there.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from tts_verifier.log import RunLog
from tts_verifier.runner.progress import Progress
from tts_verifier.runner.result import PromptResult
from tts_verifier.runner.scheduling.budget import Budgets
from tts_verifier.runner.scheduling.prompt_search import PromptSearch
from tts_verifier.runner.setup import RunSetup
from tts_verifier.types import KINDS, Job, Prompt, Trial, kind_of


class PromptScheduler:
    """Turns prompts into batches of jobs until no prompt has anything left to do.

    Belongs to the thread that runs the loop.

    Args:
        setup: the parts of the run.
        prompts: to search images for.
        log: holds the trials of earlier processes; None = no log.
        progress: counts and displays the progress.
    """

    def __init__(
        self, setup: RunSetup, prompts: Sequence[Prompt], *, log: RunLog | None, progress: Progress
    ) -> None:
        self._setup, self._log, self._progress = setup, log, progress
        self.results: dict[str, PromptResult] = {}
        """The results of prompts whose search is over, by prompt id."""
        rows = Counter[str]() if log is None else log.logged.counts()
        progress.begin(len(prompts), rows.total())
        self._new_prompts = deque(sorted(prompts, key=lambda prompt: rows[prompt.id]))
        self._searches: dict[str, PromptSearch] = {}
        """Open searches by prompt id."""
        self._ready = deque[PromptSearch]()
        """Open searches whose last round is verified: they may propose."""
        self._queues: dict[str, deque[Job]] = {kind: deque() for kind in KINDS}
        """Jobs that wait for a batch, by kind of proposal: a batch holds one kind."""
        self._budgets = Budgets(setup.budget)

    @property
    def has_work(self) -> bool:
        """Whether a job waits for a batch, or a prompt may still propose one."""
        return bool(self._new_prompts or self._ready or self._longest_queue)

    def propose_batch(self) -> list[Job]:
        """Returns jobs of one kind; none when every open prompt waits for trials."""
        self._propose()
        return self._take_batch()

    def add(self, trials: Sequence[Trial]) -> None:
        """Gives verified trials to their searches, which may then propose again."""
        for trial in trials:
            search = self._searches[trial.prompt.id]
            self._budgets.learn(search.jobs[trial.id], trial)
            search.add(trial)
            self._queue_if_ready(search)
        self._progress.done(trials)

    def stop(self) -> None:
        """Ends all searches with the trials that are there."""
        while self._new_prompts:
            self._open_next()
        for search in self._searches.values():
            search.close_round()
            self.results[search.prompt.id] = search.result()
        self._searches.clear()

    # -- propose -----------------------------------------------------------------------------

    def _propose(self) -> None:
        """Lets prompts propose until the jobs of one kind fill a batch."""
        batch_size = self._setup.batch_size
        while (self._ready or self._new_prompts) and len(self._longest_queue) < batch_size:
            search = self._ready.popleft() if self._ready else self._open_next()
            # The log may hold a whole round, so one search may go through several at once.
            while not search.pending:
                jobs = search.next_round(self._setup, self._budgets)
                if not jobs:
                    self._close(search)
                    break
                self._queue_round(search, jobs)

    def _open_next(self) -> PromptSearch:
        prompt = self._new_prompts.popleft()
        logged = None if self._log is None else self._log.logged.of_prompt(prompt.id)
        search = self._searches[prompt.id] = PromptSearch(prompt, logged)
        return search

    def _queue_round(self, search: PromptSearch, jobs: Sequence[Job]) -> None:
        """Takes a round's trials from the log, and queues the jobs that have none there."""
        self._progress.expect(len(jobs), new_prompt=search.rounds == 1)
        from_log: list[Trial] = []
        for job in jobs:
            trial = search.trial_in_log(job)
            if trial is None:
                self._queues[kind_of(job.proposal)].append(job)
            else:
                self._budgets.learn(job, trial)
                search.add(trial)
                from_log.append(trial)
        self._progress.done(from_log, from_log=True)

    def _close(self, search: PromptSearch) -> None:
        if self._log is not None:
            self._log.forget_states(search.history)
        del self._searches[search.prompt.id]
        self.results[search.prompt.id] = search.result()

    # -- batches -----------------------------------------------------------------------------

    @property
    def _longest_queue(self) -> deque[Job]:
        return max(self._queues.values(), key=len)

    def _take_batch(self) -> list[Job]:
        """Takes jobs from the longest queue, across prompts; drops those over the budget."""
        queue = self._longest_queue
        batch: list[Job] = []
        undecided: list[Job] = []
        while queue and len(batch) < self._setup.batch_size:
            job = queue.popleft()
            search = self._searches[job.prompt.id]
            fits = self._budgets.fits(search.account, job)
            if fits:
                self._budgets.promise(search.account, job)
                batch.append(job)
            elif fits is None:
                undecided.append(job)
            else:
                search.drop(job)
                self._queue_if_ready(search)
        # `extendleft` reverses; the jobs go back in their order.
        queue.extendleft(reversed(undecided))
        return batch

    def _queue_if_ready(self, search: PromptSearch) -> None:
        if not search.pending:
            self._ready.appendleft(search)
