"""The loop over batches: propose, generate, verify, log.

One thread proposes and generates. Where the parts overlap, a second thread verifies and logs
each batch while the first generates the next. Where the parts take turns on a device, several
batches are generated before they change places and the batches are verified. Otherwise each
batch is verified and logged before the next is generated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from tts_verifier.interfaces import names_of_scores
from tts_verifier.log import RunLog
from tts_verifier.runner.batch import SampleBatch, generate_batch, verify_batch
from tts_verifier.runner.devices import DevicePlacement
from tts_verifier.runner.progress import Progress
from tts_verifier.runner.result import PromptResult
from tts_verifier.runner.scheduling import PromptScheduler
from tts_verifier.runner.setup import RunSetup, check_scores, known_scores
from tts_verifier.types import VERIFIES_ONLY, Job, Prompt, Sample, Trial, kind_of, steps_heard

_MAX_BATCHES_AHEAD: Final = 2
"""Batches that are generated but not verified, at most, where the parts overlap."""

MAX_UNVERIFIED: Final = 256
"""Images that wait for the verifier, at most, where the parts take turns on a device: some
minutes of work for the seconds of a move, and less than a gigabyte at 1024 x 1024."""


class Loop:
    """Proposes, generates, verifies and logs until no prompt has anything left to do.

    Args:
        setup: the parts of the run.
        prompts: to search images for.
        log: where trials are written, and read if an earlier process wrote them; None = no log.
        progress: counts and displays the progress.
        placement: from `placed`.
    """

    def __init__(
        self,
        setup: RunSetup,
        prompts: Sequence[Prompt],
        *,
        log: RunLog | None,
        progress: Progress,
        placement: DevicePlacement,
    ) -> None:
        self._setup, self._log, self._progress = setup, log, progress
        self.placement = placement
        self.seconds = {"generate": 0.0, "verify": 0.0}
        """Seconds of work on each side."""
        self._scores_known = known_scores(setup.verifier) is not None
        """Whether the names of the verifier's scores were compared with those that the run uses."""
        self._scheduler = PromptScheduler(setup, prompts, log=log, progress=progress)
        self._verifying = deque[Future[list[Trial]]]()
        """Batches in the thread that verifies, oldest first."""
        self._unverified = deque[SampleBatch]()
        """Batches that this thread verifies once the verifier is on its device."""
        self.interrupted = False
        """Whether the generator was stopped, which ended the search early."""

    @property
    def results(self) -> dict[str, PromptResult]:
        """The results of finished prompts by prompt id."""
        return self._scheduler.results

    def run(self) -> None:
        """Runs until every prompt has its result."""
        # One thread: a verifier is called by one thread at a time.
        with ThreadPoolExecutor(1, "verify") as verify_thread:
            while True:
                jobs = self._scheduler.propose_batch()
                if jobs:
                    batch = self._generate(jobs)
                    self._hand_over(batch, verify_thread)
                    if batch.interrupted:
                        self._stop()
                        return
                elif not (self._scheduler.has_work or self._verifying or self._unverified):
                    return
                # A misspelt score shows in the first verdict: nothing more is drawn before that.
                self._collect(wait=not jobs or not self._scores_known)

    def _generate(self, jobs: Sequence[Job]) -> SampleBatch:
        kind = kind_of(jobs[0].proposal)
        self._progress.start(jobs)
        self._progress.phase(kind)
        unverified: dict[str, Sample] = {}
        if self._log is not None:
            # Earlier samples are on the disk before more are generated: a kill costs one batch.
            self._log.flush()
            unverified = self._log.unverified(jobs)
        # A move takes seconds, so the generator stays away from its device if it has nothing to do.
        if not isinstance(jobs[0].proposal, VERIFIES_ONLY) and len(unverified) < len(jobs):
            self.placement.to_generate()
        with steps_heard(self._progress.step):
            batch = generate_batch(self._setup, jobs, unverified)
        if self._log is not None:
            # Otherwise the rows are on the disk before the next batch, and notes are not needed.
            self._log.start_images(batch.whole, note=self.placement.generates_ahead)
        return batch

    def _hand_over(self, batch: SampleBatch, verify_thread: ThreadPoolExecutor) -> None:
        if self.placement.overlap:
            self.placement.to_verify()
            self._verifying.append(verify_thread.submit(self._verify_and_log, batch))
        else:
            self._unverified.append(batch)

    def _verify_and_log(self, batch: SampleBatch) -> list[Trial]:
        """Returns a batch's trials, once they are in the log if there is one."""
        self._progress.start([sample.job for sample in batch.samples], again=True)
        trials = verify_batch(self._setup, batch)
        if self._log is None:
            return trials
        # An interrupted candidate is generated again by the process that continues the run.
        whole = {sample.job.id for sample in batch.whole}
        return self._log.append([trial for trial in trials if trial.id in whole])

    def _stop(self) -> None:
        """Verifies what was generated, and ends all searches with the trials that are there."""
        self.interrupted = True
        while self._verifying or self._unverified:
            self._collect(wait=True)
        self._scheduler.stop()

    def _collect(self, *, wait: bool) -> None:
        """Takes the trials of verified batches.

        Args:
            wait: nothing can be generated before more trials are there.
        """
        takes_turns = self.placement.plan == "in turns"
        if wait or not takes_turns or self._unverified_images >= MAX_UNVERIFIED:
            while self._unverified:
                self.placement.to_verify()
                self._take(self._verify_and_log(self._unverified.popleft()))
        wait = wait or len(self._verifying) > _MAX_BATCHES_AHEAD
        while self._verifying and (wait or self._verifying[0].done()):
            self._take(self._verifying.popleft().result())
            # One batch is enough to go on: its prompts may propose, or there is room for one more.
            wait = False

    @property
    def _unverified_images(self) -> int:
        return sum(len(batch.samples) for batch in self._unverified)

    def _take(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            self.seconds["generate"] += trial.cost.generate_seconds
            self.seconds["verify"] += trial.cost.verify_seconds
        names = names_of_scores(trial.verdict for trial in trials)
        if not self._scores_known and names is not None:
            check_scores(self._setup.objective, self._setup.strategy, names)
            self._scores_known = True
        self._scheduler.add(trials)
