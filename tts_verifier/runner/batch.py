"""Takes one batch from jobs to trials: generates, verifies, and has the held-out judge score it.

Only this module measures the seconds of `Cost`: generators and verifiers leave them at zero.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from PIL import Image

from tts_verifier.errors import InputError, RunError, RunWarning
from tts_verifier.interfaces import Verifier, check_returned, check_verdicts
from tts_verifier.runner.comparing import compare_batch
from tts_verifier.runner.retry import with_retry
from tts_verifier.runner.rewriting import rewrite_batch
from tts_verifier.runner.setup import RunSetup
from tts_verifier.types import (
    VERIFIES_ONLY,
    Continue,
    Cost,
    Detail,
    InMemory,
    Job,
    Look,
    Sample,
    State,
    Stored,
    Trial,
    Verdict,
    kind_of,
)

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, eq=False)
class SampleBatch:
    """Samples that are not verified yet."""

    samples: Sequence[Sample]
    """One for each job of the batch, in order."""
    kind: str
    """The kind of proposal of all of them, as in `KINDS`."""

    @property
    def interrupted(self) -> bool:
        """Whether the generator was stopped, which ends the search."""
        return any(sample.interrupted for sample in self.samples)

    @property
    def whole(self) -> list[Sample]:
        """The samples without those that an interruption cut short."""
        return [s for s in self.samples if not (s.interrupted and s.error)]


def generate_batch(
    setup: RunSetup, jobs: Sequence[Job], unverified: Mapping[str, Sample]
) -> SampleBatch:
    """Generates a sample for each job that has none yet.

    Args:
        setup: the parts of the run.
        jobs: all of one kind of proposal.
        unverified: samples that an earlier process generated but did not verify, by trial id.

    Returns:
        A sample for each job, in order. A sample that failed holds its error. `generate_seconds`
        is the image's share of the batch.
    """
    kind = kind_of(jobs[0].proposal)
    if isinstance(jobs[0].proposal, VERIFIES_ONLY):
        return SampleBatch([_with_parents_image(job) for job in jobs], kind)
    new_jobs = [job for job in jobs if job.id not in unverified]
    refused = {
        job.id: Sample(job, None, error=setup.refused[job.prompt.id])
        for job in new_jobs
        if job.prompt.id in setup.refused
    }
    unverified = {**refused, **unverified}
    new_jobs = [job for job in new_jobs if job.id not in refused]
    samples, seconds = _timed(lambda: _generate(setup, new_jobs) if new_jobs else [])
    # Every sample may come from an earlier process; then there is nothing to divide.
    share = seconds / max(len(new_jobs), 1)
    new = {s.job.id: replace(s, cost=replace(s.cost, generate_seconds=share)) for s in samples}
    return SampleBatch([unverified.get(job.id) or new[job.id] for job in jobs], kind)


def verify_batch(setup: RunSetup, batch: SampleBatch) -> list[Trial]:
    """Verifies a batch and returns a trial for each sample, in order.

    A trial holds an error if its sample failed, its image could not be verified, or the reply
    has no usable score (see `retry`). `verify_seconds` is the image's share of the batch; the
    held-out judge's time is not counted.
    """
    if batch.kind == "compare":
        return compare_batch(setup.comparer, batch.samples)
    if batch.kind == "rewrite":
        return rewrite_batch(setup.strategy, batch.samples)
    detail: Detail = "diagnose" if batch.kind == "look" else setup.detail
    with_image = [sample for sample in batch.whole if sample.image is not None]
    verdicts, seconds = _timed(lambda: _verify(setup.verifier, with_image, detail))
    by_id = {s.job.id: verdict for s, verdict in zip(with_image, verdicts, strict=True)}
    judge_scores = _judge(setup.judge, batch.whole)
    share = seconds / max(len(with_image), 1)
    return [
        _trial(setup, sample, by_id.get(sample.job.id), share, judge_scores.get(sample.job.id, {}))
        for sample in batch.samples
    ]


def _timed(action: Callable[[], ResultT]) -> tuple[ResultT, float]:
    began = time.perf_counter()
    result = action()
    return result, time.perf_counter() - began


def _with_parents_image(job: Job) -> Sample:
    """Returns the parent's image as the sample of a job that generates nothing."""
    parent = job.ancestors[0]
    image = None if parent.image is None else parent.image.load()
    return Sample(job, image, parent.progress, stored=parent.image)


def _generate(setup: RunSetup, jobs: Sequence[Job]) -> list[Sample]:
    def generate(batch: Sequence[Job]) -> list[Sample]:
        given = setup.generator.generate([_with_state(setup, job) for job in batch])
        samples = check_returned(setup.generator, given, Sample, len(batch), "jobs")
        # The runner's job counts, whatever job the generator put into its sample.
        return [replace(sample, job=job) for sample, job in zip(samples, batch, strict=True)]

    samples = with_retry(generate, jobs, lambda job, why: Sample(job, None, error=why))
    return [
        replace(s, error=s.error or "the generator gave no image") if s.image is None else s
        for s in samples
    ]


def _with_state(setup: RunSetup, job: Job) -> Job:
    """Returns the job with its parent's state loaded; generates a lost state again."""
    if not isinstance(job.proposal, Continue):
        return job
    parent = job.ancestors[0]
    state = None
    if parent.state is not None:
        try:
            state = parent.state.load()
        except RunError:
            # The file is gone or changed. The same proposals give the same state again.
            state = None
    if state is None:
        state = _regenerated_state(setup, job)
    loaded = replace(parent, state=InMemory(state))
    return replace(job, ancestors=(loaded, *job.ancestors[1:]))


def _regenerated_state(setup: RunSetup, job: Job) -> State:
    """Returns the state of a job's parent, whose job is carried out again."""
    parent, *grandparents = job.ancestors
    again = Job(job.prompt, parent.proposal, tuple(grandparents), parent.id, parent.round)
    sample = setup.generator.generate([_with_state(setup, again)])[0]
    if sample.error:
        # Not a TTSError, which would end the run: only this candidate fails.
        raise RuntimeError(
            f"the lost state of trial {parent.id} could not be generated again: {sample.error}"
        )
    if sample.state is None:
        raise InputError(
            f"{type(setup.generator).__name__} must give an unfinished image a state; trial "
            f"{parent.id} cannot be continued without."
        )
    return sample.state


def _verify(verifier: Verifier, samples: Sequence[Sample], detail: Detail) -> list[Verdict | str]:
    """Returns a verdict for each sample, or the reason why there is none."""

    def verify(batch: Sequence[Sample]) -> list[Verdict | str]:
        images = [sample.image for sample in batch if sample.image is not None]
        prompts = [sample.job.prompt.text for sample in batch]
        verdicts = verifier.verify(images, prompts, detail=detail)
        return [*check_verdicts(verifier, verdicts, len(images), "images")]

    return with_retry(verify, samples, lambda _, why: why) if samples else []


def _judge(judge: Verifier | None, samples: Sequence[Sample]) -> dict[str, Mapping[str, float]]:
    """Returns the held-out judge's scores of finished images, by trial id.

    A look has its parent's image, so it takes over its parent's scores. An image on which the
    judge fails has none.
    """
    if judge is None:
        return {}
    scores = {
        sample.job.id: sample.job.ancestors[0].judge
        for sample in samples
        if isinstance(sample.job.proposal, Look)
    }
    new = [s for s in samples if s.image is not None and s.progress >= 1 and s.job.id not in scores]
    # "score", because the log has no columns for a judge's heatmaps and reasons.
    for sample, verdict in zip(new, _verify(judge, new, "score"), strict=True):
        if isinstance(verdict, Verdict):
            scores[sample.job.id] = dict(verdict.scores)
            if verdict.error:
                # The column of errors is about the verifier.
                why = f"The judge has no score for a candidate ({verdict.error}); the run goes on."
                warnings.warn(why, RunWarning, stacklevel=3)
    return scores


def _trial(
    setup: RunSetup,
    sample: Sample,
    verdict: Verdict | str | None,
    verify_seconds: float,
    judge_scores: Mapping[str, float],
) -> Trial:
    job, error, objective, cost = sample.job, sample.error, math.nan, sample.cost
    if verdict is not None:
        cost += Cost(verify_seconds=verify_seconds)
    if isinstance(verdict, Verdict):
        objective = setup.objective(verdict.scores)
        # A verifier of a third party may leave its cost at zero; the budget counts every verdict.
        cost += Cost(verifier_calls=max(verdict.cost.verifier_calls, 1))
        error = error or (_unusable(verdict) if math.isnan(objective) else "")
    else:
        error, verdict = error or verdict or "", None
    return Trial(
        id=job.id,
        prompt=job.prompt,
        round=job.round,
        proposal=job.proposal,
        progress=sample.progress,
        verdict=verdict,
        objective=objective,
        cost=cost,
        image=_stored_image(sample),
        size=None if sample.image is None else sample.image.size,
        state=None if sample.state is None else InMemory(sample.state),
        judge=judge_scores,
        error=error,
    )


def _unusable(verdict: Verdict) -> str:
    if verdict.error:
        return verdict.error
    missing = [name for name, value in verdict.scores.items() if not math.isfinite(value)]
    return f"the reply has no usable {', '.join(missing) or 'score for the objective'}"


def _stored_image(sample: Sample) -> Stored[Image.Image] | None:
    if sample.stored is not None or sample.image is None:
        return sample.stored
    return InMemory(sample.image)
