"""Verdicts of pairs that arrive one by one, beside those that one call gives."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from same_verdicts import IMAGES, PROMPTS, assert_same
from threads import at_once
from tiny_imagedoctor import example, talkative

from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.verifiers.imagedoctor import ImageDoctor
from tts_verifier.verifiers.imagedoctor.engine import Engine

SECONDS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    example().make(folder)
    return folder


@pytest.fixture(scope="module")
def doctor(folder: Path) -> ImageDoctor:
    """Random weights whose replies, each different, hold heatmap tokens."""
    return talkative(folder, batch_size=8, max_new_tokens=24)


def test_pairs_that_arrive_alone_get_the_verdicts_of_one_call(doctor: ImageDoctor) -> None:
    expected = doctor.verify(IMAGES, PROMPTS)
    quick = doctor.verify(IMAGES, PROMPTS, detail="score")
    with doctor.live() as live:
        pairs = list(zip(IMAGES, PROMPTS, strict=True))

        def client() -> list[Any]:
            futures = [live.submit(*pair, "diagnose") for pair in pairs]
            return [future.result(SECONDS) for future in futures]

        scores = [live.submit(*pair, "score") for pair in pairs]
        for verdicts in at_once([client] * 3):
            assert_same(verdicts, expected)
        assert_same([future.result(SECONDS) for future in scores], quick)
    assert any(len(verdict.heatmaps) for verdict in expected)


def test_copies_of_the_model_share_the_pairs(doctor: ImageDoctor) -> None:
    copies = [copy.deepcopy(doctor.checkpoint.model)]
    two = ImageDoctor(doctor.checkpoint, copies=copies, batch_size=2)
    with two.live() as live:
        pairs = zip(IMAGES, PROMPTS, strict=True)
        futures = [live.submit(*pair, "diagnose") for pair in pairs]
        verdicts = [future.result(SECONDS) for future in futures]
    assert_same(verdicts, doctor.verify(IMAGES, PROMPTS))


def test_leaving_it_answers_what_it_has(doctor: ImageDoctor) -> None:
    with doctor.live() as live:
        futures = [live.submit(image, "a cat", "diagnose") for image in IMAGES]
    assert_same([f.result(0) for f in futures], doctor.verify(IMAGES, ["a cat"] * len(IMAGES)))
    with pytest.raises(InputError, match="closed"):
        live.submit(IMAGES[0], "a cat", "diagnose")


def test_a_pair_can_be_taken_back(doctor: ImageDoctor) -> None:
    with doctor.live() as live:
        futures = [live.submit(image, "a cat", "diagnose") for image in IMAGES]
        assert futures[0].cancel()
        wait(futures, SECONDS)
    with pytest.raises(CancelledError):
        futures[0].result(0)
    assert all(len(future.result(0).scores) for future in futures[1:])


def test_only_the_pair_that_cannot_be_used_fails(doctor: ImageDoctor) -> None:
    with doctor.live() as live:
        good = live.submit(IMAGES[0], "a cat", "diagnose")
        with pytest.raises(InputError, match="it is empty"):
            live.submit(IMAGES[0], " ", "diagnose")
        assert good.result(SECONDS).scores


def test_a_panic_in_one_verdict_fails_it_alone(
    doctor: ImageDoctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """As libraries in Rust raise; it is no Exception."""

    def panics(ids: list[int]) -> str:
        raise Panic("index out of range")

    with doctor.live() as live:
        with monkeypatch.context() as patch:
            patch.setattr(doctor.checkpoint.tokenizer, "decode", panics)
            future = live.submit(IMAGES[0], "a cat", "diagnose")
            with pytest.raises(RuntimeError, match="Panic: index out of range"):
                future.result(SECONDS)
        assert live.submit(IMAGES[0], "a cat", "diagnose").result(SECONDS).scores


def test_a_call_from_inside_is_refused_and_others_wait(doctor: ImageDoctor) -> None:
    with doctor.live(), pytest.raises(UnsupportedError, match="from within its own call"):
        doctor.verify(IMAGES[:1], PROMPTS[:1])
    assert doctor.verify(IMAGES[:1], PROMPTS[:1])


def test_when_an_engine_fails_all_get_its_error_and_the_next_time_works(
    doctor: ImageDoctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Engine, source: Any, **more: Any) -> Iterator[Any]:
        source.wait()
        raise torch.OutOfMemoryError("no memory")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "replies", failing)
        with doctor.live() as live:
            future = live.submit(IMAGES[0], "a cat", "diagnose")
            with pytest.raises(torch.OutOfMemoryError, match="no memory"):
                future.result(SECONDS)
        assert live.failed
    with doctor.live() as live:
        assert live.submit(IMAGES[0], "a cat", "diagnose").result(SECONDS).scores


def test_a_template_answers_only_in_calls(folder: Path) -> None:
    loaded = ImageDoctor.from_pretrained(str(folder), device="cpu", answer_template=True)
    assert list(loaded.live_details) == ["diagnose"]
    with loaded.live() as live, pytest.raises(UnsupportedError, match="live serves diagnose"):
        live.submit(IMAGES[0], "a cat", "score")
