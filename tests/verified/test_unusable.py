"""What a call returns if the verifier gives no usable verdict, and arguments it cannot use."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny_imagedoctor import example
from tiny_pipelines import CALL, same

from tts_verifier import wrap
from tts_verifier.errors import InputError, RunWarning
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeVerifier
from tts_verifier.verifiers.imagedoctor import ImageDoctor


class Fails(FakeVerifier):
    def verify(self, *args, **kwargs):
        raise RuntimeError("no luck")


def test_the_first_drawing_comes_back_marked_if_no_verdict_is_usable(pipe):
    verified = wrap(pipe, FakeVerifier(unparsable=lambda *_: True), strategy=BestOfN(3))
    message = "has 0 usable candidates of the 1 images .* 1 drawn without a usable verdict follow"
    with pytest.warns(RunWarning, match=message):
        out = verified("a", seed=1, **CALL)
    assert same(out.images[0], out.trials[0].image.load())
    assert out.verified == [False]
    assert not out.interrupted
    with pytest.warns(RunWarning, match=message):
        pixels = verified("a", seed=1, output_type="np", **CALL)
    assert np.isfinite(pixels.images).all()


def test_it_comes_back_too_if_the_verifier_fails(pipe):
    with pytest.warns(RunWarning) as caught:
        out = wrap(pipe, Fails(), strategy=BestOfN(2))("a", seed=1, **CALL)
    assert "verdict follow: RuntimeError: no luck. `verified` marks" in str(caught[-1].message)
    assert same(out.images[0], out.trials[0].image.load())
    assert out.verified == [False]


def test_usable_candidates_come_first(pipe):
    bad = {1}
    calls = []

    def unparsable(image, prompt):
        calls.append(image)
        return len(calls) - 1 in bad

    verified = wrap(pipe, FakeVerifier(unparsable=unparsable), strategy=BestOfN(3))
    with pytest.warns(RunWarning, match=r"has 2 usable candidates of the 4 .* 1 are None\."):
        out = verified("a", seed=1, num_images_per_prompt=4, **CALL)
    assert out.verified == [True, True, False, False]
    assert same(out.images[2], out.trials[1].image.load())
    assert out.images[3] is None


def test_a_usable_verdict_is_no_reason_to_warn(verified):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert verified("a", seed=1, **CALL).verified == [True]


def test_a_verifier_is_loaded_from_a_path(pipe, tmp_path):
    example().make(tmp_path)
    assert isinstance(tmp_path, Path)
    verified = wrap(pipe, tmp_path)
    assert isinstance(verified.verifier, ImageDoctor)
    assert verified.verifier.settings["model"] == str(tmp_path)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "Prompt 0 must say what the image should show; it is empty"),
        (["a", " "], "Prompt 1 must say what the image should show; it is empty"),
        (["a", None], "prompt must be a text or a list of texts"),
        ({"prompt": ["a"]}, "A list of prompts is needed, got a dict"),
        (b"a", "A list of prompts is needed, got one bytes"),
        (np.array([["a"]]), "A list of prompts is needed, got a ndarray of 2 axes"),
        ([], "prompt must be a text or a list of texts"),
    ],
)
def test_prompts_that_cannot_be_searched_for_are_refused_before_drawing(
    verified, pipe, monkeypatch, prompt, message
):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(type(pipe), "prepare_latents", never)
    with pytest.raises(InputError, match=message):
        verified(prompt, seed=1, **CALL)


def test_prompts_may_be_a_column_of_a_table(verified):
    wanted = verified(["a", "b"], negative_prompt=["x", "y"], seed=1, **CALL)
    for kind in (tuple, np.array, lambda texts: np.array(texts, object)):
        out = verified(kind(["a", "b"]), negative_prompt=kind(["x", "y"]), seed=1, **CALL)
        assert all(same(*pair) for pair in zip(out.images, wanted.images, strict=True))
