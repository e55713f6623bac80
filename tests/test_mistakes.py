"""What a new user of the Python interface gets wrong ends in one line, before any drawing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tts_verifier import (
    Adaptive,
    BestOfN,
    Budget,
    ImageDoctor,
    InpaintReroll,
    Objective,
    Spectral,
    SuccessiveHalving,
    Verifier,
    load_verifier,
    run,
    wrap,
)
from tts_verifier.errors import TTSError
from tts_verifier.testing import FakeGenerator, FakeVerifier

IMAGE = Image.new("RGB", (16, 16))
VERIFIER = FakeVerifier()


def verify(images, prompts=("a cat",)):
    return VERIFIER.verify(images, prompts)


def rerank(**options):
    return VERIFIER.rerank([IMAGE, IMAGE], **({"prompt": "a cat"} | options))


def search(prompts=("a cat",), verifier=VERIFIER, strategy=None, **options):
    return run(prompts, GENERATOR, verifier, strategy or BestOfN(2), **options)


GENERATOR = FakeGenerator()

MISTAKES = {
    "one picture": (lambda: verify(IMAGE), "Put it into a list: [image]"),
    "a path": (lambda: verify("cat.png"), "Put it into a list: [image]"),
    "one array": (lambda: verify(np.zeros((8, 8, 3), np.uint8)), "Put it into a list: [image]"),
    "no file": (lambda: verify(["cat.png"]), "Image 0: There is no image file cat.png"),
    "bytes": (lambda: verify([b"png"]), "a torch tensor or a path, got a bytes"),
    "floats": (lambda: verify([np.full((8, 8, 3), 200.0)]), "Divide by 255"),
    "axes": (lambda: verify([torch.zeros(8, 8, 3)]), "Move the channels to the front"),
    "channels": (lambda: verify([np.zeros((3, 64, 64), np.uint8)]), "got (3, 64, 64)"),
    "integers": (lambda: verify([np.zeros((8, 8, 3), int)]), "astype('uint8')"),
    "lengths": (lambda: verify([IMAGE] * 2), "got 2 images and 1 prompts"),
    "one prompt": (lambda: verify([IMAGE], "a cat"), "A list of prompts is needed, got one str"),
    "detail": (lambda: VERIFIER.verify([IMAGE], ["x"], detail="full"), "'diagnose', got 'full'"),
    "prompts": (lambda: rerank(prompt=["a cat"]), "For a prompt for each image use verify"),
    "a score": (lambda: rerank(objective="overall"), "such as {'overall': 1.0}, got 'overall'"),
    "no score": (lambda: rerank(objective={"overal": 1}), "Did you mean 'overall'?"),
    "a function": (lambda: rerank(objective=lambda s: s["al"]), "it raised KeyError('al') for the"),
    "no number": (lambda: rerank(objective=lambda s: "x"), "by name and return a number"),
    "looks": (lambda: rerank(looks=3), "looks must be a number from 1 to 2"),
    "weights": (lambda: Objective("overall"), "needs finite weights by score name, got 'overall'"),
    "a prompt": (lambda: search("a cat"), "Put one prompt into a list"),
    "no prompts": (lambda: search([]), "at least one prompt, got none"),
    "a class": (lambda: search(strategy=BestOfN), "Make one, such as BestOfN(8)."),
    "a name": (lambda: search(verifier="shapes"), "such as Verifier.from_pretrained('shapes')"),
    "a judge": (lambda: search(judge="clip"), "Make one, such as load_verifier('clip')."),
    "a comparer": (lambda: search(comparer="clip"), "The comparer must be an object with compare"),
    "a budget": (lambda: search(budget=8), "such as Budget(candidates=8), got 8"),
    "negative": (lambda: search(budget=Budget(candidates=-1)), "or None, got candidates=-1"),
    "half": (lambda: search(budget=Budget(verifier_calls=2.5)), "a whole number or None, got ver"),
    "an option": (lambda: search(buget=None), "run does not take buget. Did you mean 'budget'"),
    "a folder": (lambda: search(folder=3), "A path must be a text or a Path, got 3"),
    "no n": (lambda: BestOfN("8"), "n must be a positive integer, got '8'"),
    "an inner class": (lambda: Adaptive(BestOfN), "must be a strategy, such as BestOfN(8)"),
    "a threshold": (lambda: Adaptive(BestOfN(2), 0.9), "such as {'overall': 0.9}, got 0.9"),
    "a strength": (
        lambda: InpaintReroll(strengths=0.8),
        "be a list of numbers in (0, 1], got",
    ),
    "a stop": (lambda: SuccessiveHalving(stops=0.5), "stops must be a list of fractions, got 0.5"),
    "a shape": (lambda: Spectral(shape=4), "shape must be a list of numbers, got 4"),
    "no name": (
        lambda: Verifier.from_pretrained(None),
        "must be a text or a Path, got None",
    ),
    "keyword": (lambda: Verifier.from_pretrained("shapes", devise=1), "Did you mean 'device'"),
    "a checkpoint": (lambda: ImageDoctor("shapes"), "Use ImageDoctor.from_pretrained"),
    "a verifier": (lambda: load_verifier("clipp"), "is none of them. Did you mean 'clip'"),
    "a subclass": (lambda: FakeVerifier.from_pretrained("x"), "Call FakeVerifier(...)"),
    "a pipeline": (lambda: wrap("a/b", VERIFIER), "DiffusionPipeline.from_pretrained"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_line_that_says_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, said = MISTAKES[name]
    with pytest.raises(TTSError) as caught:
        call()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert GENERATOR.trace == []


def test_a_heatmap_that_is_not_there_is_named_with_those_that_are() -> None:
    heatmaps = verify([IMAGE])[0].heatmaps
    with pytest.raises(KeyError, match=r"'artefact'\. Available: misalignment, artifact"):
        heatmaps["artefact"]
    assert heatmaps.get("artefact") is None


def test_numbers_of_numpy_are_numbers() -> None:
    assert type(BestOfN(np.int64(3)).n) is int
    assert InpaintReroll(gain=np.float32(0.5), enough=np.float32(0.5)).enough == 0.5
    ran = search(seed=np.int64(3), strategy=BestOfN(np.int32(2)))
    assert [t.id for t in ran.trials] == [t.id for t in search(seed=3).trials]
    GENERATOR.trace.clear()
