"""Every public class says whether threads may share it, and those that may are tried."""

from __future__ import annotations

import inspect
import io
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from threads import at_once

import tts_verifier
from tts_verifier import registry
from tts_verifier.images import as_image
from tts_verifier.shapes.simulated import SimulatedGenerator
from tts_verifier.shapes.verifiers import JudgeVerifier, OracleVerifier
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Draw, Job, Prompt

PUBLIC = {
    value
    for name in tts_verifier.__all__
    if inspect.isclass(value := getattr(tts_verifier, name)) and not issubclass(value, Exception)
}
VALUES = {"Prompt", "Verdict"}
"""Frozen values need no rule of their own."""
BUILT = {
    built
    for role in ("generator", "verifier", "strategy")
    for name in registry.names(role)
    if inspect.isclass(built := registry.builder(role, name))
}


@pytest.mark.parametrize("kind", sorted(PUBLIC | BUILT, key=lambda kind: kind.__name__))
def test_a_public_class_says_whether_threads_may_share_it(kind: type) -> None:
    rule = "frozen=True" if kind.__name__ in VALUES else "thread"
    text = inspect.getsource(inspect.getmodule(kind)) if rule != "thread" else kind.__doc__ or ""
    assert rule in text


def process_state() -> tuple[Any, ...]:
    return (
        list(warnings.filters),
        warnings.showwarning,
        dict(os.environ),
        Path.cwd(),
        logging.getLogger("diffusers").level,
        torch.get_default_dtype(),
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.allow_tf32,
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    )


def equal(one: Any, other: Any) -> bool:
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))


def test_pictures_are_read_in_threads_without_a_trace(tmp_path: Path) -> None:
    files = []
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 30, 3), np.uint8)
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(files[-1])
    alone = [as_image(file) for file in files]
    before = process_state()

    def read() -> bool:
        pairs = [(as_image(f), image) for f, image in zip(files, alone, strict=True)]
        return all(equal(*pair) for pair in pairs * 5)

    assert at_once([read] * 8) == [True] * 8
    assert process_state() == before


def test_a_warning_of_pillow_passes_through_or_is_the_reason(tmp_path: Path) -> None:
    content = io.BytesIO()
    picture = Image.new("RGB", (8, 8), "red")
    picture.save(content, "TIFF")
    file = tmp_path / "a.tif"
    # An entry of a known tag that has more values than are allowed.
    damaged = content.getvalue().replace(
        b"\x15\x01\x03\x00\x01\x00\x00\x00", b"\x15\x01\x03\x00\x02\x00\x00\x00"
    )
    file.write_bytes(damaged)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert as_image(file).size == (8, 8)
    assert caught
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(tts_verifier.TTSError, match=r"must be readable, .*a\.tif is not"):
            as_image(file)


CAPTIONS = ["a red circle", "two blue stars", "a green square left of a circle"]


def verdicts(verifier: Any, images: Any) -> Callable[[], list[Any]]:
    return lambda: [
        (v.scores, v.text, [v.heatmaps[name].tolist() for name in v.heatmaps])
        for v in verifier.verify(images, CAPTIONS)
    ]


@pytest.mark.parametrize("verifier", [OracleVerifier(), JudgeVerifier(), FakeVerifier()])
def test_readers_and_fakes_give_threads_the_same_verdicts(verifier: Any) -> None:
    jobs = [Job(Prompt(f"{i}", caption), Draw(i)) for i, caption in enumerate(CAPTIONS)]
    images = [sample.image for sample in SimulatedGenerator().generate(jobs)]
    before = process_state()
    work = verdicts(verifier, images)
    # First in threads: whatever is built once is built while others wait for it.
    results = at_once([work] * 6)
    assert results == [work()] * 6
    assert process_state() == before


@pytest.mark.parametrize("generator", [SimulatedGenerator(), FakeGenerator()])
def test_generators_without_a_pipeline_give_threads_the_same_images(generator: Any) -> None:
    jobs = [Job(Prompt(f"{i}", caption), Draw(i)) for i, caption in enumerate(CAPTIONS)]
    alone = [sample.image for sample in generator.generate(jobs)]
    for samples in at_once([lambda: generator.generate(jobs)] * 6):
        assert all(equal(s.image, image) for s, image in zip(samples, alone, strict=True))
