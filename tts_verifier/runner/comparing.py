"""Compares pairs of images in both orders, so that a preference for a position cancels out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from PIL import Image

from tts_verifier.choice.tournament import both_orders
from tts_verifier.choice.views import PREFERRED
from tts_verifier.errors import InputError
from tts_verifier.interfaces import Comparer, check_verdicts
from tts_verifier.runner.retry import with_retry
from tts_verifier.types import Cost, InMemory, Sample, Trial, Verdict
from tts_verifier.types.score_names import COST

Orders = tuple[Verdict, Verdict]
"""The verdicts on a pair: in its order, and the other way round."""


def compare_batch(comparer: Comparer, samples: Sequence[Sample]) -> list[Trial]:
    """Compares the two images of every sample and returns a trial for each, in order.

    The trial's objective is the mean preference for the first image, in [0, 1], NaN with an error
    where there is none. Its reply has both answers, its cost counts two verifier calls, and its
    columns `cost_…`, of a comparer that has them, are the sums of both.

    Args:
        comparer: the run's.
        samples: of jobs that compare; the ancestors of each job are its two images.
    """
    began = time.perf_counter()
    answers = with_retry(lambda batch: _ask(comparer, batch), samples, lambda _, why: why)
    share = (time.perf_counter() - began) / len(samples)
    return [_compared(s, answer, share) for s, answer in zip(samples, answers, strict=True)]


def _ask(comparer: Comparer, samples: Sequence[Sample]) -> list[Orders | str]:
    pairs = [[_image(trial) for trial in sample.job.ancestors] for sample in samples]
    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    prompts = [sample.job.prompt.text for sample in samples]
    # Both orders in one call: what a comparer reads of an image may serve twice.
    verdicts = comparer.compare([*first, *second], [*second, *first], [*prompts, *prompts])
    verdicts = check_verdicts(comparer, verdicts, 2 * len(samples), "pairs")
    return list(zip(verdicts[: len(samples)], verdicts[len(samples) :], strict=True))


def _image(trial: Trial) -> Image.Image:
    if trial.image is None:
        raise InputError(f"Only images are compared, trial {trial.id} has none.")
    return trial.image.load()


def _compared(sample: Sample, answer: Orders | str, seconds: float) -> Trial:
    job, parent = sample.job, sample.job.ancestors[0]
    verdict, objective, error = None, math.nan, ""
    cost = Cost(verifier_calls=2, verify_seconds=seconds)
    if isinstance(answer, str):
        error = answer
    else:
        there, back = (one.scores.get(PREFERRED, math.nan) for one in answer)
        objective = both_orders(there, back)
        replies = zip(("in this order", "the other way"), (there, back), answer, strict=True)
        text = "\n".join(
            f"{way} {_preference_text(value)}: {one.text}" for way, value, one in replies
        )
        paid = {n: v + answer[1].scores.get(n, v) for n, v in answer[0].scores.items()
                if n.startswith(COST)}  # fmt: skip
        verdict = Verdict(paid, text=text, detail="score", cost=cost)
        if math.isnan(objective):
            reasons = (one.error for one in answer if one.error)
            error = next(reasons, "the comparison has no usable preference")
    return Trial(
        id=job.id,
        prompt=job.prompt,
        round=job.round,
        proposal=job.proposal,
        progress=1.0,
        verdict=verdict,
        objective=objective,
        cost=cost,
        image=parent.image or (InMemory(sample.image) if sample.image else None),
        size=parent.size,
        error=error,
    )


def _preference_text(preference: object) -> str:
    return f"{preference:.3f}" if isinstance(preference, float) else repr(preference)
