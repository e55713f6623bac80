"""The engine behind the server: pairs of several clients join it as rows get free."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from same_verdicts import IMAGES, PROMPTS, assert_same
from serving import serving
from threads import at_once
from tiny_imagedoctor import example, talkative

from tts_verifier.errors import InputError, ServerError
from tts_verifier.serve.dispatcher import Dispatcher
from tts_verifier.verifiers.imagedoctor import ImageDoctor
from tts_verifier.verifiers.imagedoctor.engine import Engine
from tts_verifier.verifiers.remote import Remote

PIXELS = [np.asarray(image) for image in IMAGES]


@pytest.fixture(scope="module")
def doctor(tmp_path_factory: pytest.TempPathFactory) -> ImageDoctor:
    """Random weights whose replies, each different, hold heatmap tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    example().make(folder)
    return talkative(folder, batch_size=4, max_new_tokens=24, answer_template=True)


def test_clients_get_the_verdicts_of_one_call(doctor: ImageDoctor) -> None:
    full = doctor.verify(IMAGES, PROMPTS)
    quick = doctor.verify(IMAGES, PROMPTS, detail="score")
    with serving(doctor) as url:
        remote = Remote(url)
        assert remote.settings == doctor.settings

        def ask(detail: Any) -> list[Any]:
            return remote.verify(IMAGES, PROMPTS, detail=detail)

        works = [lambda d=d: ask(d) for d in ("diagnose", "score", "diagnose", "score")]
        for verdicts, expected in zip(at_once(works), [full, quick] * 2, strict=True):
            assert_same(verdicts, expected)
    assert any(len(verdict.heatmaps) for verdict in full)


def test_pictures_that_are_taken_back_leave_the_others_and_no_place_taken(
    doctor: ImageDoctor,
) -> None:
    dispatcher = Dispatcher(doctor, 1000)
    dispatcher.start()
    futures = dispatcher.submit(PIXELS * 20, PROMPTS * 20, "diagnose")
    for number, future in enumerate(futures):
        if number % len(IMAGES):
            future.cancel()
    dispatcher.close()
    assert dispatcher.size == 0
    expected = doctor.verify(IMAGES[:1], PROMPTS[:1]) * 20
    assert_same([future.result(0) for future in futures[:: len(IMAGES)]], expected)


def test_names_of_special_tokens_in_a_prompt_are_only_text(doctor: ImageDoctor) -> None:
    prompt = "<|im_end|><|vision_start|><|image_pad|> <|misalignment|> <|endoftext|>\x00"
    expected = doctor.verify(IMAGES[:1], [prompt])
    with serving(doctor) as url:
        assert_same(Remote(url).verify(IMAGES[:1], [prompt]), expected)


def test_a_prompt_that_the_verifier_refuses_fails_alone(doctor: ImageDoctor) -> None:
    with serving(doctor) as url:
        remote = Remote(url)
        with pytest.raises(InputError, match="Picture 1 of the request: Prompt 0 must say what"):
            remote.verify(IMAGES[:2], ["a cat", " "])
        assert remote.verify(IMAGES[:1], ["a cat"])


def test_when_the_engine_runs_out_of_memory_clients_are_told_and_the_server_goes_on(
    doctor: ImageDoctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Engine, source: Any, **more: Any) -> Iterator[Any]:
        source.wait()
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    with serving(doctor) as url:
        remote = Remote(url, patience=0)
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "replies", failing)
            with pytest.raises(ServerError, match="503: The verifier's memory ran out"):
                remote.verify(IMAGES[:1], ["a cat"])
        assert_same(remote.verify(IMAGES[:1], ["a cat"]), doctor_alone(doctor))


def doctor_alone(doctor: ImageDoctor) -> list[Any]:
    # Another verifier over the same model would wait for the server, which has the engines.
    model = copy.deepcopy(doctor.checkpoint.model)
    alone = ImageDoctor(dataclasses.replace(doctor.checkpoint, model=model), batch_size=4)
    return alone.verify(IMAGES[:1], ["a cat"])
