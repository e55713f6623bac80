"""Has prompts rewritten, and makes trials of the texts, so that a continued run reads them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from tts_verifier.errors import InputError, RunError
from tts_verifier.interfaces import Reflects, RewriteRequest, Strategy
from tts_verifier.runner.retry import with_retry
from tts_verifier.types import Cost, Job, Sample, Trial, Verdict

_LONGEST: Final = 4000
"""Characters of a text that still is a prompt, or as many as twice the prompt."""


def rewrite_batch(strategy: Strategy, samples: Sequence[Sample]) -> list[Trial]:
    """Has the prompt of every sample's job rewritten and returns a trial for each, in order.

    The trial's reply is the new text. It has an error where there is none; a draw from it then
    takes the prompt. Its `generate_seconds` are those of the rewriter.

    Args:
        strategy: with the rewriter.
        samples: of jobs that rewrite; the first ancestor of each is the image.

    Raises:
        InputError: the strategy has no rewriter.
        RunError: it does not return a list of as many texts.
    """
    rewriter = strategy.rewriter if isinstance(strategy, Reflects) else None
    if rewriter is None:
        raise InputError(
            f"{type(strategy).__name__} proposes to rewrite a prompt and has no `rewriter`. Give "
            "it one."
        )

    def rewrite(batch: Sequence[Sample]) -> list[tuple[str, str]]:
        texts = rewriter.rewrite([_request(sample.job) for sample in batch])
        listed = isinstance(texts, list | tuple)
        if not listed or len(texts) != len(batch):
            raise RunError(
                f"{type(rewriter).__name__} must return a text for each of {len(batch)} requests, "
                f"it returned {len(texts) if listed else f'a {type(texts).__name__}'}."
            )
        return [_given_text(text, sample) for text, sample in zip(texts, batch, strict=True)]

    began = time.perf_counter()
    answers = with_retry(rewrite, samples, lambda _, why: ("", why))
    share = (time.perf_counter() - began) / len(samples)
    return [_rewritten(s.job, *answer, share) for s, answer in zip(samples, answers, strict=True)]


def _given_text(text: Any, sample: Sample) -> tuple[str, str]:
    """Returns a rewriter's text, or why it cannot be one."""
    if not isinstance(text, str | None):
        return "", f"the rewriter must give a text, it gave a {type(text).__name__}"
    stripped, most = (text or "").strip(), max(_LONGEST, 2 * len(sample.job.prompt.text))
    if len(stripped) > most:
        return (
            "",
            f"the rewriter's text must have at most {most} characters, it has {len(stripped)}",
        )
    return stripped, ""


def _request(job: Job) -> RewriteRequest:
    return RewriteRequest(job.prompt.text, job.text, job.ancestors[0])


def _rewritten(job: Job, text: str, error: str, seconds: float) -> Trial:
    return Trial(
        id=job.id,
        prompt=job.prompt,
        round=job.round,
        proposal=job.proposal,
        progress=1.0,
        verdict=None if error else Verdict({}, text=text, detail="score"),
        cost=Cost(generate_seconds=seconds),
        error=error or ("" if text else "the rewriter gave no text"),
    )
