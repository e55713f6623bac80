"""One verifier in many threads: every result is the one that the call gives alone."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from same_verdicts import IMAGES, PROMPTS, assert_same, stress
from threads import at_once
from tiny_imagedoctor import example, talkative

from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.verifiers.imagedoctor import ImageDoctor
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine


@pytest.fixture(scope="module")
def doctor(tmp_path_factory: pytest.TempPathFactory) -> ImageDoctor:
    """Random weights whose replies, each different, hold heatmap tokens."""
    folder: Path = tmp_path_factory.mktemp("tiny")
    example().make(folder)
    return talkative(folder, batch_size=8, max_new_tokens=24)


def test_every_verdict_is_the_one_of_the_call_alone(doctor: ImageDoctor) -> None:
    stress(doctor, threads=8, count=1)


@pytest.mark.slow
def test_eight_threads_make_fifty_calls_each(doctor: ImageDoctor) -> None:
    stress(doctor, threads=8, count=50)


@pytest.mark.filterwarnings("ignore:No image has a usable score")
def test_rankings_and_moves_mix_with_calls(doctor: ImageDoctor) -> None:
    ranking = doctor.rerank(IMAGES[:3], "a dog")
    size, device = doctor.nbytes, doctor.device
    works: list[Any] = [lambda: doctor.rerank(IMAGES[:3], "a dog")] * 4
    works += [lambda: doctor.to("cpu"), lambda: (doctor.nbytes, doctor.device)]
    *rankings, moved, about = at_once(works)
    for other in rankings:
        assert [item.index for item in other] == [item.index for item in ranking]
        assert_same([i.verdict for i in other], [i.verdict for i in ranking])
    assert moved is doctor
    assert about == (size, device)


def test_a_move_waits_for_the_call_that_runs(
    doctor: ImageDoctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    inside, asked = threading.Event(), threading.Event()
    real = Engine.replies

    def replies(engine: Engine, requests: Any, *, expected: int) -> Iterator[Any]:
        inside.set()
        assert asked.wait(60)
        yield from real(engine, requests)
        log.append("replied")

    move = doctor.checkpoint.model.to
    monkeypatch.setattr(Engine, "replies", replies)
    monkeypatch.setattr(
        doctor.checkpoint.model, "to", lambda device: (log.append("moved"), move(device))
    )

    def moving() -> None:
        inside.wait(60)
        asked.set()
        doctor.to("cpu")

    at_once([lambda: doctor.verify(IMAGES[:1], ["a dog"]), moving])
    assert log == ["replied", "moved"]


def test_a_bad_call_hurts_no_other(doctor: ImageDoctor) -> None:
    alone = doctor.verify(IMAGES[:1], ["a dog"])
    works: list[Any] = [lambda: doctor.verify(IMAGES[:1], ["a dog"])] * 3
    works += [
        lambda: doctor.verify(["gone.png"], ["a dog"]),
        lambda: doctor.verify(IMAGES[:1], [""]),
    ]
    *good, gone, empty = at_once(works)
    for verdicts in good:
        assert_same(verdicts, alone)
    assert isinstance(gone, InputError)
    assert isinstance(empty, InputError)


def test_two_verifiers_of_one_checkpoint_wait_for_each_other(doctor: ImageDoctor) -> None:
    padded = ImageDoctor(doctor.checkpoint, fit="pad", batch_size=2)
    alone = [v.verify(IMAGES[:2], PROMPTS[:2]) for v in (doctor, padded)]
    works = [lambda v=v: v.verify(IMAGES[:2], PROMPTS[:2]) for v in (doctor, padded) * 3]
    for place, verdicts in enumerate(at_once(works)):
        assert_same(verdicts, alone[place % 2])


def test_a_call_from_within_a_call_is_refused(
    doctor: ImageDoctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(*_: Any, **_options: Any) -> Iterator[Any]:
        yield doctor.verify(IMAGES[:1], ["a dog"])

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "replies", again)
        with pytest.raises(UnsupportedError, match="from within its own call"):
            doctor.verify(IMAGES[:1], ["a dog"])
    assert len(doctor.verify(IMAGES[:1], ["a dog"])) == 1


def test_after_an_error_in_a_pass_the_next_call_is_right(
    doctor: ImageDoctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = doctor.verify(IMAGES[:3], PROMPTS[:3])
    real = Engine._finish

    def interrupted(engine: Engine, *arguments: Any) -> Any:
        real(engine, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            doctor.verify(IMAGES, PROMPTS)
    assert doctor.engine.decode_step is None
    assert_same(doctor.verify(IMAGES[:3], PROMPTS[:3]), alone)


def test_a_threads_own_autocast_changes_no_verdict(doctor: ImageDoctor) -> None:
    alone = doctor.verify(IMAGES[:1], PROMPTS[:1])
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(doctor.verify(IMAGES[:1], PROMPTS[:1]), alone)


def test_a_verifier_can_still_be_copied(doctor: ImageDoctor) -> None:
    doctor.engine.forget()
    copied = copy.deepcopy(doctor)
    works = [lambda v=v: v.verify(IMAGES[:1], PROMPTS[:1]) for v in (doctor, copied)]
    assert_same(*at_once(works))


def test_a_prompt_that_is_too_long_is_refused_before_anything_runs(
    doctor: ImageDoctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(Engine, "replies", never)
    monkeypatch.setattr(doctor, "pair_processor", replace(doctor.pair_processor, most_tokens=1600))
    with pytest.raises(InputError, match="must fit into the model's 1600 tokens"):
        doctor.verify([Image.new("RGB", (8, 8))] * 2, ["long " * 50, "x"])
