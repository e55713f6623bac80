"""Conformance checks of generators, verifiers and strategies, for use in tests.

    def test_mine_conforms() -> None:
        check_generator(MyGenerator())

A check returns nothing. It raises AssertionError with the rule that was broken.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tts_verifier.errors import InputError, RunError, RunWarning
from tts_verifier.images import as_images
from tts_verifier.interfaces import Generator, Strategy, Verifier, check_pairs, check_returned
from tts_verifier.interfaces.parts import ReturnedT
from tts_verifier.runner import run
from tts_verifier.testing.fakes import FakeGenerator, FakeVerifier
from tts_verifier.types import (
    Continue,
    Detail,
    Draw,
    InMemory,
    Job,
    Mask,
    Prompt,
    Proposal,
    Repaint,
    Sample,
    Task,
    Trial,
    Verdict,
)

MOST_ROUNDS: Final = 1000
"""A strategy with more rounds counts as endless."""

_PROMPT: Final = Prompt("check", "a red circle")


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise AssertionError(rule)


def _answers(
    part: object, answers: object, kind: type[ReturnedT], count: int, what: str
) -> list[ReturnedT]:
    try:
        return check_returned(part, answers, kind, count, what)
    except RunError as error:
        raise AssertionError(str(error)) from error


def _is_object(part: object, kind: type) -> bool:
    # A class has the methods of its objects too.
    return isinstance(part, kind) and not isinstance(part, type)


def check_strategy(strategy: Strategy) -> None:
    """Runs a strategy on fakes.

    It checks that the strategy is a pure function of the history, makes only the proposals that it
    declares, ends with a finished image, and derives its seeds from the prompt.

    Raises:
        AssertionError: the strategy breaks a rule.
    """
    _require(_is_object(strategy, Strategy), "a strategy object has `needs` and `propose`")
    calls: list[tuple[Task, tuple[Trial, ...], list[Proposal]]] = []

    class Recorder:
        needs = strategy.needs

        def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
            proposals = strategy.propose(task, history)
            _require(
                isinstance(proposals, list | tuple),
                f"a strategy returns its proposals in a list, got {proposals!r}",
            )
            calls.append((task, tuple(history), list(proposals)))
            _require(len(calls) <= MOST_ROUNDS, f"a strategy must end within {MOST_ROUNDS} rounds")
            return proposals

    # Two prompts show whether the seeds depend on the prompt.
    prompts = [_PROMPT, Prompt("other", "a blue square")]
    result = run(prompts, FakeGenerator(), FakeVerifier(), Recorder())
    for task, history, proposals in calls:
        _require(
            strategy.propose(task, history) == proposals,
            "the same history must give the same proposals: a strategy keeps no state",
        )
        used = [*proposals, *(p.noise for p in proposals if isinstance(p, Draw) and p.noise)]
        undeclared = {type(part).__name__ for part in used if type(part) not in strategy.needs}
        _require(not undeclared, f"`needs` must name every kind proposed, {undeclared} is missing")
    _require(all(c.trial for c in result.choices.values()), "a search must finish some image")
    roots = [
        {p for task, history, proposals in calls if task.prompt == prompt and not history
         for p in proposals}
        for prompt in prompts
    ]  # fmt: skip
    _require(not roots[0] & roots[1], "seeds must depend on the prompt: use identity.seed_for")


def check_generator(generator: Generator, *, tolerance: int = 2) -> None:
    """Generates a few images with every kind of proposal that a generator supports.

    Args:
        generator: the generator to check.
        tolerance: by how much of 255 a pixel may differ when its job is in another batch.

    Raises:
        AssertionError: the generator breaks a rule.
    """
    _require(
        _is_object(generator, Generator),
        "a generator is an object with supports, settings, batch_size",
    )
    _require(generator.generate([]) == [], "no jobs make no samples")
    _require(Draw in generator.supports, "every generator supports Draw")
    jobs = [Job(_PROMPT, Draw(seed)) for seed in (1, 2, 3)]
    samples = _answers(generator, generator.generate(jobs), Sample, len(jobs), "jobs")
    _require([s.job for s in samples] == jobs, "a sample for each job, in order, with its job")
    images = [_pixels(sample) for sample in samples]
    _require(all(s.progress == 1 for s in samples), "a finished image has progress 1")
    _require(all(s.cost.network_evaluations > 0 for s in samples), "evaluations are counted")
    _require(bool((images[0] != images[1]).any()), "another seed makes another image")
    alone = _pixels(generator.generate(jobs[2:])[0])
    _require(
        bool(np.abs(alone - images[2]).max() <= tolerance),
        "a job makes the same image in every batch",
    )
    if Continue in generator.supports:
        _check_continue(generator)
    if Repaint in generator.supports:
        _check_repaint(generator, samples[0])


def _pixels(sample: Sample) -> NDArray[np.int64]:
    _require(not sample.error, f"generating must work here, it failed: {sample.error}")
    _require(isinstance(sample.image, Image.Image), "a sample has a PIL image")
    image = sample.image
    _require(image is not None and image.mode == "RGB", "an image is RGB")
    # Signed, for differences.
    return np.asarray(image).astype(np.int64)


def _as_parent(sample: Sample, name: str) -> Trial:
    image, state = sample.image, sample.state
    return Trial(
        id=name,
        prompt=_PROMPT,
        round=0,
        proposal=sample.job.proposal,
        progress=sample.progress,
        image=None if image is None else InMemory(image),
        state=None if state is None else InMemory(state),
    )


def _check_continue(generator: Generator) -> None:
    half = generator.generate([Job(_PROMPT, Draw(1, until=0.5))])[0]
    _pixels(half)
    _require(0 < half.progress < 1, "an unfinished image has a progress between 0 and 1")
    _require(half.state is not None, "an unfinished image has a state")
    job = Job(_PROMPT, Continue("half", 1.0, 2), (_as_parent(half, "half"),))
    whole = generator.generate([job])[0]
    _pixels(whole)
    _require(whole.progress == 1, "an image continued to the end has progress 1")
    # The two parts may round their numbers of steps differently, hence the 1.2.
    _require(
        whole.cost.network_evaluations > 0
        and half.cost.network_evaluations + whole.cost.network_evaluations
        <= 1.2 * generator.generate([Job(_PROMPT, Draw(1))])[0].cost.network_evaluations,
        "an image generated in two parts costs what a whole one costs",
    )


def _check_repaint(generator: Generator, sample: Sample) -> None:
    before = _pixels(sample)
    height, width, _ = before.shape
    # The left half is masked; blending at its border may change a little of the other half.
    left = np.broadcast_to(np.arange(width) < width // 2, (height, width))
    job = Job(_PROMPT, Repaint("whole", Mask.of(left), 5), (_as_parent(sample, "whole"),))
    after = _pixels(generator.generate([job])[0])
    _require(after.shape == before.shape, "a repainted image has its parent's size")
    change = np.abs(after - before).mean(axis=2)
    _require(bool(change[left].mean() > change[~left].mean()), "a repaint changes the masked part")


def check_verifier(
    verifier: Verifier,
    images: Sequence[Image.Image] | None = None,
    prompts: Sequence[str] | None = None,
) -> None:
    """Verifies images in every way that the interface allows.

    Args:
        verifier: the verifier to check.
        images: at least two images of different quality; None = a red circle, and noise.
        prompts: one per image; None = "a red circle" for each.

    Raises:
        AssertionError: the verifier breaks a rule.
        InputError: there are fewer than two images, or not as many prompts.
    """
    images = as_images(_examples() if images is None else images)
    if len(images) < 2:
        raise InputError(f"check_verifier needs at least two images, got {len(images)}.")
    prompts = check_pairs(images, [_PROMPT.text] * len(images) if prompts is None else prompts)
    _require(
        isinstance(verifier, Verifier),
        "a verifier is an object of a class that derives from Verifier",
    )
    _require(verifier.verify([], []) == [], "no images make no verdicts")
    details: tuple[Detail, ...] = ("diagnose", "score")
    named = set(verifier.details)
    _require(
        bool(named) and named <= set(details),
        f"`details` names at least one of {details}, got {verifier.details}",
    )
    for detail in details:
        given = verifier.verify(images, prompts, detail=detail)
        verdicts = _answers(verifier, given, Verdict, len(images), "images")
        for image, verdict in zip(images, verdicts, strict=True):
            _check_verdict(image, verdict)
    # In reverse order every image has another place and other neighbours in the batch.
    backward = verifier.verify(images[::-1], prompts[::-1])[::-1]
    for forward_verdict, verdict in zip(verifier.verify(images, prompts), backward, strict=True):
        expected, scores = forward_verdict.scores, verdict.scores
        same = all(_nearly_equal(expected[n], scores.get(n, math.nan)) for n in expected)
        _require(same, "a verdict does not depend on its place in the batch")
        known = set(scores if verifier.score_names is None else verifier.score_names)
        _require(set(scores) == known, f"`score_names` must be the verdicts' names, got {known}")
    with warnings.catch_warnings():
        # A verifier whose scores are all NaN conforms too.
        warnings.filterwarnings("ignore", "No image has a usable score", RunWarning)
        ranking = verifier.rerank(images, prompts[0])
    values = [-math.inf if math.isnan(item.objective) else item.objective for item in ranking]
    _require(values == sorted(values, reverse=True), "a ranking goes from best to worst")
    try:
        verifier.verify(images, prompts[1:])
    except InputError:
        return
    raise AssertionError("a number of prompts other than that of images is an InputError")


def _examples() -> list[Image.Image]:
    """Returns a red circle on white, and noise: RGB, 64 x 64."""
    circle = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(circle).ellipse((16, 16, 48, 48), fill="red")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return [circle, Image.fromarray(noise)]


def _nearly_equal(a: float, b: float) -> bool:
    # Batches of other shapes round differently, above all in bfloat16.
    return (math.isnan(a) and math.isnan(b)) or abs(a - b) < 0.05


def _check_verdict(image: Image.Image, verdict: Verdict) -> None:
    _require(bool(verdict.scores), "a verdict has scores, NaN where they are unusable")
    for name, value in verdict.scores.items():
        _require(not math.isinf(value), f"{name} must be finite or NaN: {value}")
    for name, heatmap in verdict.heatmaps.items():
        _require(heatmap.shape == (image.height, image.width), f"{name} is on the image's pixels")
        _require(heatmap.dtype == np.float32, f"{name} is float32")
        _require(bool(heatmap.min() >= 0 and heatmap.max() <= 1), f"{name} is in [0, 1]")
    for x1, y1, x2, y2 in verdict.boxes:
        inside = 0 <= x1 <= x2 <= image.width and 0 <= y1 <= y2 <= image.height
        _require(inside, f"a box lies within the image: {(x1, y1, x2, y2)}")
    _require(
        verdict.cost.verifier_calls >= 1,
        "a verdict counts as a verifier call: give it cost=Cost(verifier_calls=1)",
    )
