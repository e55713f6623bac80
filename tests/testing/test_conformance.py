"""The fakes conform, and the checks find what does not."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from searches import InpaintReroll, SeedBeam

from tts_verifier.errors import InputError
from tts_verifier.shapes.verifiers import OracleVerifier
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.strategies.zero_order import ZeroOrder
from tts_verifier.testing import (
    FakeGenerator,
    FakeVerifier,
    check_generator,
    check_strategy,
    check_verifier,
)
from tts_verifier.types import (
    Continue,
    Draw,
    Job,
    Look,
    LowBand,
    Near,
    Prompt,
    Proposal,
    Repaint,
    Sample,
    Task,
    Trial,
    Verdict,
)

IMAGES = [Image.new("RGB", (8, 6), c) for c in ("red", "blue", "white")]
PROMPTS = ["a red square", "a blue square", "nothing"]


@pytest.mark.parametrize("strategy", [BestOfN(3), SeedBeam(), ZeroOrder(), InpaintReroll()])
def test_strategies_conform(strategy: BestOfN) -> None:
    check_strategy(strategy)


def test_the_fakes_conform() -> None:
    check_generator(FakeGenerator(), tolerance=0)
    check_verifier(FakeVerifier(), IMAGES, PROMPTS)
    check_verifier(FakeVerifier(unparsable=lambda image, prompt: True), IMAGES, PROMPTS)


def test_a_verifier_is_checked_on_two_pictures_unless_others_are_given() -> None:
    check_verifier(FakeVerifier())
    check_verifier(OracleVerifier())
    check_verifier(FakeVerifier(), IMAGES)
    with pytest.raises(InputError, match="at least two images, got 1"):
        check_verifier(FakeVerifier(), IMAGES[:1])
    with pytest.raises(InputError, match="one prompt for each image, got 2 images and 1 prompts"):
        check_verifier(FakeVerifier(), prompts=["a red circle"])
    with pytest.raises(AssertionError, match="of a class that derives from Verifier"):
        check_verifier(FakeVerifier)  # type: ignore[arg-type]


class Stateful(BestOfN):
    rounds = 0

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        self.rounds += 1
        return [Draw(self.rounds)] if len(history) < 2 else []


class SameForAll(BestOfN):
    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        return [] if history else [Draw(1)]


class Endless(BestOfN):
    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        return [Draw(len(history))]


class Unfinished(BestOfN):
    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        return [] if history else [Draw(len(task.prompt.text), until=0.5)]


class Undeclared(ZeroOrder):
    needs = frozenset({Look})


class UndeclaredNoise(ZeroOrder):
    needs = frozenset({Draw})


class OneDraw(BestOfN):
    def propose(self, task: Task, history: Sequence[Trial]) -> Draw:  # type: ignore[override]
        return Draw(1)


@pytest.mark.parametrize(
    ("strategy", "rule"),
    [
        (object(), "has `needs` and `propose`"),
        (Stateful(), "keeps no state"),
        (SameForAll(), "must depend on the prompt"),
        (Endless(), "must end within 1000 rounds"),
        (Unfinished(), "must finish some image"),
        (Undeclared(), "'Draw'"),
        (UndeclaredNoise(), "{'Near'} is missing"),
        (OneDraw(), "returns its proposals in a list, got Draw"),
    ],
)
def test_a_strategy_that_does_not_conform_is_found(strategy: BestOfN, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_strategy(strategy)


class Altered(FakeGenerator):
    """Changes every sample."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        return [self.change(s, len(jobs)) for s in super().generate(jobs)]


def is_whole(sample: Sample) -> bool:
    return isinstance(sample.job.proposal, Draw) and sample.progress == 1


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda s, n: replace(s, image=s.image.convert("L")), "an image is RGB"),
        (lambda s, n: replace(s, image=None), "has a PIL image"),
        (lambda s, n: s.image, "must return a sample for each of 3 jobs, in a list; it returned a"),
        (lambda s, n: replace(s, error="x"), "it failed: x"),
        (lambda s, n: replace(s, job=Job(Prompt("0", "x"), Draw(0))), "with its job"),
        (lambda s, n: replace(s, progress=0.9), "has progress 1"),
        (lambda s, n: replace(s, cost=type(s.cost)()), "evaluations are counted"),
        (lambda s, n: replace(s, image=IMAGES[0]), "another seed makes another image"),
        (lambda s, n: s if n > 1 else replace(s, image=IMAGES[0].resize((16, 16))), "batch"),
        (lambda s, n: replace(s, state=None), "an unfinished image has a state"),
        (
            lambda s, n: replace(s, progress=1.0) if s.progress == 0.5 else s,
            "a progress between 0 and 1",
        ),
        (
            lambda s, n: replace(s, progress=0.9) if isinstance(s.job.proposal, Continue) else s,
            "continued to the end",
        ),
        (
            lambda s, n: replace(s, cost=s.cost + s.cost) if not is_whole(s) else s,
            "costs what a whole one costs",
        ),
        (
            lambda s, n: replace(s, image=IMAGES[0])
            if isinstance(s.job.proposal, Repaint)
            else s,
            "has its parent's size",
        ),
        (
            lambda s, n: replace(s, image=s.job.ancestors[0].image.load())
            if isinstance(s.job.proposal, Repaint)
            else s,
            "changes the masked part",
        ),
    ],
)  # fmt: skip
def test_a_generator_that_does_not_conform_is_found(change, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_generator(Altered(change))


class Odd(FakeVerifier):
    """Changes every verdict."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def verify(self, images, prompts, *, detail="diagnose") -> list[Verdict]:
        verdicts = super().verify(images, prompts, detail=detail)
        return [self.change(v, i) for i, v in enumerate(verdicts)]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (
            lambda v, i: 0.5,
            "must return a verdict for each of 3 images, in a list; it returned a f",
        ),
        (lambda v, i: replace(v, scores={}), "a verdict has scores"),
        (lambda v, i: replace(v, scores={"a": np.inf}), "must be finite or NaN"),
        (lambda v, i: replace(v, scores={"a": i / 10}), "place in the batch"),
        (lambda v, i: replace(v, scores={"a": 0.5}), "`score_names` must be the verdicts' names"),
        (lambda v, i: replace(v, boxes=((0, 0, 99, 1),)), "within the image"),
        (lambda v, i: replace(v, cost=type(v.cost)()), "counts as a verifier call"),
        (lambda v, i: replace(v, heatmaps={"m": np.zeros((2, 2))}), "on the image's pixels"),
        (lambda v, i: replace(v, heatmaps={"m": np.zeros((6, 8))}), "is float32"),
        (
            lambda v, i: replace(v, heatmaps={"m": np.full((6, 8), 2, np.float32)}),
            r"is in \[0, 1\]",
        ),
    ],
)
def test_a_verifier_that_does_not_conform_is_found(change, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_verifier(Odd(change), IMAGES, PROMPTS)


def test_lengths_must_be_checked() -> None:
    class Lenient(FakeVerifier):
        def verify(self, images, prompts, *, detail="diagnose") -> list[Verdict]:
            return super().verify(images, [*prompts, *["x"] * 9][: len(images)], detail=detail)

    with pytest.raises(AssertionError, match="is an InputError"):
        check_verifier(Lenient(), IMAGES, PROMPTS)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"size": 6}, {"steps": -1}])
def test_a_fake_generator_needs_usable_numbers(arguments: dict[str, int]) -> None:
    with pytest.raises(InputError, match="must be positive and size a multiple of 4"):
        FakeGenerator(**arguments)


def test_a_fake_generator_says_what_it_lacks() -> None:
    prompt = Prompt("0", "x")
    parent = Trial("p", prompt, 0, Look("q"), 1.0, None, 0.5)
    generator = FakeGenerator()
    for proposal, reason in [
        (Continue("p", 1.0, 1), "Continue needs the state of trial p"),
        (Repaint("p", None, 1), "Repaint needs the image of trial p"),
        (Draw(1, noise=Near("p", 0.5)), "generated from noise"),
        (Look("p"), "cannot serve Look"),
    ]:
        with pytest.raises(InputError, match=reason):
            generator.generate([Job(prompt, proposal, (parent,))])


def test_a_low_band_of_one_level_sets_the_means_of_blocks() -> None:
    band = tuple(float(v) for v in range(-6, 6))
    job = Job(Prompt("0", "x"), Draw(1, until=0.5, noise=LowBand(band, 1)))
    latents = FakeGenerator().generate([job])[0].state["latents"]
    means = latents.reshape(3, 2, 2, 2, 2).mean(axis=(2, 4))
    assert np.allclose(means.ravel() * 2, band, atol=1e-5)
