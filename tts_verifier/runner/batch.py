"""One batch from jobs to trials: draw, judge, let the held-out judge look, take the time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from PIL import Image

from tts_verifier.errors import InputError, RunError
from tts_verifier.interfaces import Verifier
from tts_verifier.runner.retry import attempt
from tts_verifier.runner.setup import Search
from tts_verifier.types import (
    Continue,
    Detail,
    Job,
    Look,
    Sample,
    Stored,
    Trial,
    Verdict,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A drawn batch that nobody has judged: a sample for each id."""

    samples: Mapping[str, Sample]
    looking: bool

    def __len__(self) -> int:
        return len(self.samples)


def draw(search: Search, jobs: Mapping[str, Job], waiting: Mapping[str, Sample]) -> Drawn:
    """Draws jobs of one kind, but those that are `waiting` to be judged already.

    A sample that failed has its error; seconds are an image's share of the batch.
    """
    looking = all(isinstance(job.proposal, Look) for job in jobs.values())
    todo = [job for name, job in jobs.items() if name not in waiting]
    if looking:
        return Drawn(dict(zip(jobs, _look(todo), strict=True)), looking)
    samples, seconds = _timed(lambda: _draw(search, todo) if todo else [])
    share = seconds / max(len(todo), 1)
    fresh = (replace(s, cost=replace(s.cost, draw_seconds=share)) for s in samples)
    return Drawn({n: waiting[n] if n in waiting else next(fresh) for n in jobs}, looking)


def judge(search: Search, drawn: Drawn) -> list[Trial]:
    """Judges a batch; returns a trial each, in order.

    A sample that failed becomes a trial with its error; so does a picture that could not be
    judged, or a reply without a usable score (see `attempts`). Seconds are an image's share of
    the batch; the held-out judge's are not counted.
    """
    samples = list(drawn.samples.values())
    good = [i for i, sample in enumerate(samples) if sample.image is not None]
    detail: Detail = "diagnose" if drawn.looking else search.detail
    verdicts, judge_seconds = _timed(
        lambda: _verify(search.verifier, [samples[i] for i in good], detail)
    )
    by_place = dict(zip(good, verdicts, strict=True))
    trials = []
    for i, (name, sample) in enumerate(drawn.samples.items()):
        trial = _trial(search, name, sample, by_place.get(i))
        seconds = replace(
            trial.cost,
            judge_seconds=judge_seconds / len(good) if i in by_place else 0.0,
        )
        trials.append(replace(trial, cost=seconds))
    return trials if search.judge is None else _judged(search.judge, trials, samples)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def _look(jobs: Sequence[Job]) -> list[Sample]:
    samples = []
    for job in jobs:
        stored = job.ancestors[0].image
        image = None if stored is None else stored.load()
        samples.append(Sample(job, image, job.ancestors[0].progress))
    return samples


def _draw(search: Search, jobs: Sequence[Job]) -> list[Sample]:
    def generate(some: Sequence[Job]) -> list[Sample]:
        samples = search.generator.generate([_with_state(search, job) for job in some])
        if len(samples) != len(some):
            raise InputError(
                f"{type(search.generator).__name__} must return a sample for each of "
                f"{len(some)} jobs, it returned {len(samples)}."
            )
        return samples

    samples = attempt(generate, jobs, lambda job, why: Sample(job, None, error=why))
    return [
        replace(s, error=s.error or "the generator gave no image") if s.image is None else s
        for s in samples
    ]


def _with_state(search: Search, job: Job) -> Job:
    """Makes sure that the parent's state is there, drawing the lineage again if it is gone."""
    if not isinstance(job.proposal, Continue):
        return job
    parent = job.ancestors[0]
    try:
        if parent.state is not None:
            state = parent.state.load()
            kept = replace(parent, state=Stored(lambda: state))
            return replace(job, ancestors=(kept, *job.ancestors[1:]))
    except RunError:
        pass
    again = _with_state(search, Job(job.prompt, parent.proposal, job.ancestors[1:]))
    drawn = search.generator.generate([again])[0].state
    if drawn is None:
        raise InputError(
            f"{type(search.generator).__name__} must give an unfinished drawing a state; trial "
            f"{parent.id} cannot be continued without."
        )
    kept = replace(parent, state=Stored(lambda: drawn))
    return replace(job, ancestors=(kept, *job.ancestors[1:]))


def _verify(verifier: Verifier, samples: Sequence[Sample], detail: Detail) -> list[Verdict | str]:
    """Returns a verdict for each sample, or the reason why there is none."""

    def verify(some: Sequence[Sample]) -> list[Verdict | str]:
        images = [sample.image for sample in some if sample.image is not None]
        prompts = [sample.job.prompt.text for sample in some]
        verdicts = verifier.verify(images, prompts, detail=detail)
        if len(verdicts) != len(images):
            raise InputError(
                f"{type(verifier).__name__} must return a verdict for each of {len(images)} "
                f"images, it returned {len(verdicts)}."
            )
        return list(verdicts)

    return attempt(verify, samples, lambda _, why: why) if samples else []


def _trial(search: Search, name: str, sample: Sample, verdict: Verdict | str | None) -> Trial:
    job = sample.job
    trial = Trial(
        id=name,
        prompt=job.prompt,
        round=0,
        proposal=job.proposal,
        progress=sample.progress,
        scores={},
        objective=math.nan,
        cost=sample.cost,
        image=_image(sample),
        state=None if sample.state is None else _in_memory(sample.state),
        error=sample.error,
    )
    if not isinstance(verdict, Verdict):
        return replace(trial, error=sample.error or verdict or "")
    objective = search.objective(verdict.scores)
    calls = max(verdict.cost.verifier_calls, 1)
    return replace(
        trial,
        scores=dict(verdict.scores),
        objective=objective,
        cost=replace(sample.cost, verifier_calls=sample.cost.verifier_calls + calls),
        boxes=verdict.boxes,
        text=verdict.text,
        detail=verdict.detail,
        heatmaps={n: _in_memory(heatmap) for n, heatmap in verdict.heatmaps.raw.items()},
        error=sample.error or (_unusable(verdict) if math.isnan(objective) else ""),
    )


def _unusable(verdict: Verdict) -> str:
    bad = [name for name, value in verdict.scores.items() if not math.isfinite(value)]
    return f"the reply has no usable {', '.join(bad) or 'score for the objective'}"


def _image(sample: Sample) -> Stored[Image.Image] | None:
    if isinstance(sample.job.proposal, Look):
        return sample.job.ancestors[0].image
    if sample.kept is not None or sample.image is None:
        return sample.kept
    return _in_memory(sample.image)


def _in_memory(value: T) -> Stored[T]:
    return Stored(lambda: value)


def _judged(judge: Verifier, trials: Sequence[Trial], samples: Sequence[Sample]) -> list[Trial]:
    """Adds the held-out judge's scores of finished pictures; a look has its parent's."""
    new = [
        i
        for i, trial in enumerate(trials)
        if trial.progress >= 1 and trial.image is not None and not isinstance(trial.proposal, Look)
    ]
    verdicts = dict(zip(new, _verify(judge, [samples[i] for i in new], "score"), strict=True))
    judged = []
    for i, trial in enumerate(trials):
        verdict = verdicts.get(i)
        if isinstance(verdict, Verdict):
            trial = replace(trial, judge=dict(verdict.scores))
        elif isinstance(trial.proposal, Look):
            trial = replace(trial, judge=samples[i].job.ancestors[0].judge)
        judged.append(trial)
    return judged
