"""The loop over prompts, rounds and batches: propose, generate, verify, log.

A prompt is asked for proposals as soon as all of its last round is verified and no batch is
full yet. Batches therefore fill from whatever prompts are open, and no slow prompt holds the
others up. Prompts under way come before new ones, and among new ones those with the fewest
rows in the log: few prompts are open at a time, and a continued run generates at once. A
strategy sees whole rounds only, in the order of its proposals. Trials that the log holds are
taken from there, as if the search had never stopped.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from tts_verifier.log import RunLog
from tts_verifier.runner.batch import Batch, generate_batch, verify_batch
from tts_verifier.runner.budget import Budgets
from tts_verifier.runner.devices import DevicePlacement
from tts_verifier.runner.progress import Progress
from tts_verifier.runner.prompt_search import PromptSearch
from tts_verifier.runner.result import PromptResult
from tts_verifier.runner.setup import RunSetup
from tts_verifier.types import KINDS, Job, Prompt, Sample, Trial, kind_of

_AHEAD: Final = 2
"""Batches that are generated but not verified, at most, where the two overlap."""

MAX_UNVERIFIED: Final = 256
"""Images that wait for the verifier, at most, where the parts take turns on a device: some
minutes' work for a move's seconds, and less than a gigabyte at 1024 x 1024."""


class Loop:
    """Proposes, generates, verifies and logs until no prompt has anything left to do.

    Args:
        setup: the parts of the run.
        prompts: to search images for.
        log: where trials go and come from; None = nowhere.
        bar: shows how the run goes.
    """

    def __init__(
        self,
        setup: RunSetup,
        prompts: Sequence[Prompt],
        *,
        log: RunLog | None,
        bar: Progress,
    ) -> None:
        self.setup, self.log, self.bar = setup, log, bar
        self.placement = DevicePlacement(setup)
        self.results: dict[str, PromptResult] = {}
        """By prompt id."""
        self.spent = {"generate": 0.0, "verify": 0.0}
        """Seconds of work."""
        rows = Counter[str]() if log is None else log.logged.counts()
        bar.begin(len(prompts), rows.total())
        self._new = deque(sorted(prompts, key=lambda prompt: rows[prompt.id]))
        """Prompts that were not asked yet."""
        self._searches: dict[str, PromptSearch] = {}
        """Open searches by prompt id."""
        self._idle = deque[PromptSearch]()
        """Open searches whose last round is verified."""
        self._queues: dict[str, deque[Job]] = {kind: deque() for kind in KINDS}
        """Jobs that wait for a batch, by kind."""
        self._budgets = Budgets(setup.budget)
        self._verifying = deque[Future[list[Trial]]]()
        """Batches in the thread that verifies."""
        self._held = deque[Batch]()
        """Batches that wait until the verifier is on its device."""

    def run(self) -> None:
        """Runs to the end."""
        with ThreadPoolExecutor(1, "verify") as thread:
            while True:
                self._propose()
                jobs = self._next_batch()
                if jobs:
                    batch = self._generate(jobs)
                    if self.placement.overlap:
                        self.placement.to_verify()
                        self._verifying.append(thread.submit(self._verify_and_log, batch))
                    else:
                        self._held.append(batch)
                elif self._finished:
                    return
                self._collect(wait=not jobs)

    @property
    def _finished(self) -> bool:
        proposing = self._new or self._idle or any(self._queues.values())
        return not (proposing or self._verifying or self._held)

    # -- propose -----------------------------------------------------------------------------

    def _propose(self) -> None:
        """Asks prompts until a whole batch of a kind is waiting."""
        full = self.setup.generator.batch_size
        while (self._idle or self._new) and max(map(len, self._queues.values())) < full:
            search = self._idle.popleft() if self._idle else self._open(self._new.popleft())
            while not search.pending:
                jobs = search.next_round(self.setup, self._budgets)
                if not jobs:
                    self._end(search)
                    break
                self._queue(search, jobs)

    def _open(self, prompt: Prompt) -> PromptSearch:
        logged = None if self.log is None else self.log.logged.of_prompt(prompt.id)
        search = self._searches[prompt.id] = PromptSearch(prompt, logged)
        return search

    def _queue(self, search: PromptSearch, jobs: Sequence[Job]) -> None:
        """Takes a round's trials from the log, and queues the jobs that have none."""
        self.bar.expect(len(jobs), new=search.rounds == 1)
        from_log: list[Trial] = []
        for job in jobs:
            trial = search.trial_in_log(job)
            if trial is None:
                self._queues[kind_of(job.proposal)].append(job)
            else:
                self._budgets.learn(job, trial)
                search.add(trial)
                from_log.append(trial)
        self.bar.done(from_log, known=True)

    def _end(self, search: PromptSearch) -> None:
        if self.log is not None:
            self.log.forget_states(search.history)
        del self._searches[search.prompt.id]
        self.results[search.prompt.id] = PromptResult.of(
            search.prompt, search.history, logged=self.log is not None
        )

    # -- generate ----------------------------------------------------------------------------

    def _next_batch(self) -> list[Job]:
        """Takes jobs of the kind of which most are waiting, across prompts."""
        queue = max(self._queues.values(), key=len)
        batch: list[Job] = []
        unknown: list[Job] = []
        while queue and len(batch) < self.setup.generator.batch_size:
            job = queue.popleft()
            search = self._searches[job.prompt.id]
            fits = self._budgets.fits(search.account, job)
            if fits:
                self._budgets.promise(search.account, job)
                batch.append(job)
            elif fits is None:
                unknown.append(job)
            else:
                search.drop(job)
                self._ready(search)
        queue.extendleft(reversed(unknown))
        return batch

    def _generate(self, jobs: Sequence[Job]) -> Batch:
        kind = kind_of(jobs[0].proposal)
        self.bar.phase(kind)
        unjudged: dict[str, Sample] = {}
        if self.log is not None:
            # What is generated so far is on the disk before more is: a kill costs one batch.
            self.log.flush()
            unjudged = self.log.unjudged(jobs)
        if kind != "look" and len(unjudged) < len(jobs):
            self.placement.to_generate()
        batch = generate_batch(self.setup, jobs, unjudged)
        if self.log is not None:
            self.log.start_images(batch.samples, note=self.placement.generates_ahead)
        return batch

    # -- verify and log ----------------------------------------------------------------------

    def _verify_and_log(self, batch: Batch) -> list[Trial]:
        """Returns a batch's trials; in the thread that verifies, where that overlaps."""
        trials = verify_batch(self.setup, batch)
        return trials if self.log is None else self.log.append(trials)

    def _collect(self, wait: bool) -> None:
        """Takes verified batches; waits for one if told to, or if too many are unverified."""
        unverified = sum(len(batch.samples) for batch in self._held)
        in_turns = self.placement.plan == "in turns"
        if wait or not in_turns or unverified >= MAX_UNVERIFIED:
            while self._held:
                self.placement.to_verify()
                self._take(self._verify_and_log(self._held.popleft()))
        wait = wait or len(self._verifying) > _AHEAD
        while self._verifying and (wait or self._verifying[0].done()):
            self._take(self._verifying.popleft().result())
            wait = False

    def _take(self, trials: Sequence[Trial]) -> None:
        """Gives trials to their searches; a search whose round is whole may propose again."""
        for trial in trials:
            self.spent["generate"] += trial.cost.generate_seconds
            self.spent["verify"] += trial.cost.verify_seconds
            search = self._searches[trial.prompt.id]
            self._budgets.learn(search.jobs[trial.id], trial)
            search.add(trial)
            self._ready(search)
        self.bar.done(trials)

    def _ready(self, search: PromptSearch) -> None:
        if not search.pending:
            self._idle.appendleft(search)
