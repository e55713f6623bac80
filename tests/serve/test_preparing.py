"""The process that prepares pairs for an ImageDoctor and makes its verdicts."""

from __future__ import annotations

import os
import pickle
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from same_verdicts import IMAGES, PROMPTS, assert_same
from server_processes import SECONDS, process, read_until, rest_of, waiting
from serving import serving_apart
from threads import at_once
from tiny_imagedoctor import example, noise, talkative

from tts_verifier.errors import InputError, ServerError
from tts_verifier.serve.answers import description_of
from tts_verifier.serve.limits import RequestLimits
from tts_verifier.serve.processes.channel import (
    Answered,
    Channel,
    ForeignError,
    PlainVerdict,
    Prepared,
    PreparingSetup,
    RawAnswer,
    Setup,
    Submitted,
    Withdrawn,
)
from tts_verifier.serve.processes.preparing import Preparing
from tts_verifier.serve.processes.verifier import ServerProcessError, VerifierProcess
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Verdict
from tts_verifier.verifiers.imagedoctor import ImageDoctor
from tts_verifier.verifiers.remote import Remote

PIXELS = [np.full((2, 3, 3), level, np.uint8) for level in range(20)]
SETUP = Setup(description_of(FakeVerifier()), "", 0, RequestLimits(), None)


@pytest.fixture(scope="module")
def doctor(tmp_path_factory: pytest.TempPathFactory) -> ImageDoctor:
    folder = tmp_path_factory.mktemp("tiny")
    example().make(folder)
    loaded = talkative(folder, batch_size=4, max_new_tokens=24, answer_template=True)
    loaded.pair_processor = replace(loaded.pair_processor, most_tokens=1700)
    return loaded


@pytest.fixture(scope="module")
def url(
    doctor: ImageDoctor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """Of a server, and a file that an import of torch in its other processes makes."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "torch.py").write_text(f"open({str(folder / 'imported')!r}, 'w')")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        with serving_apart(doctor) as url:
            yield url, folder / "imported"


def test_clients_get_the_verdicts_of_one_call_and_torch_is_imported_by_one_process(
    url: tuple[str, Path], doctor: ImageDoctor
) -> None:
    remote = Remote(url[0], patience=0)
    full = doctor.verify(IMAGES, PROMPTS)
    # Answers from a template: their pictures go on as they are.
    quick = doctor.verify(IMAGES, PROMPTS, detail="score")

    def ask(detail: Any) -> list[Verdict]:
        return remote.verify(IMAGES, PROMPTS, detail=detail)

    works = [lambda d=d: ask(d) for d in ("diagnose", "score", "diagnose", "score")]
    for verdicts, expected in zip(at_once(works), [full, quick] * 2, strict=True):
        assert_same(verdicts, expected)
    assert any(len(verdict.heatmaps) for verdict in full)
    assert not url[1].exists()


def test_only_the_pair_that_cannot_be_used_fails(url: tuple[str, Path]) -> None:
    remote = Remote(url[0], patience=0)
    with pytest.raises(InputError, match="Picture 1 of the request: A prompt must fit into the"):
        remote.verify(IMAGES[:2], ["a cat", "long " * 100])
    assert remote.verify(IMAGES[:1], ["a cat"])[0].heatmaps


def test_a_processor_of_pairs_pickles(doctor: ImageDoctor) -> None:
    other = pickle.loads(pickle.dumps(doctor.pair_processor))
    ids, levels = other.prepare(IMAGES[0], PROMPTS[1], "diagnose")
    expected = doctor.pair_processor.prepare(IMAGES[0], PROMPTS[1], "diagnose")
    assert ids == expected.ids
    assert np.array_equal(levels, expected.levels)


class Pairs:
    """Prepares what is no ImageDoctor's."""

    def prepare(self, image: Image.Image, prompt: str, detail: str) -> tuple[int, str]:
        if prompt == "bad":
            raise InputError("Too dark.")
        if prompt == "panic":
            raise Panic("index out of range")
        if prompt == "unsendable":
            return 0, lambda: None  # type: ignore[return-value]
        return int(np.asarray(image).max()), prompt

    def verdict(self, size: tuple[int, int], detail: str, answer: str) -> Verdict:
        if answer == "panic":
            raise Panic("no such token")
        return Verdict({"width": float(size[0]), "height": float(size[1])}, text=answer)


class Unloadable:
    """Pickles, and cannot be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return divmod, (1, 0)


class Panic(BaseException):
    """As libraries in Rust raise; it is no Exception."""


@contextmanager
def preparing(ahead: int = 100) -> Iterator[tuple[Channel, Iterator[Any], Channel, Iterator[Any]]]:
    """Runs it in a thread; gives the ends of the HTTP process and of the verifier's."""
    pairs = [socket.socketpair() for _ in range(2)]
    (ours, theirs), (engine, its) = pairs
    with theirs, engine, its, ThreadPoolExecutor(1) as threads:
        http, verifier = Channel(ours), Channel(engine)
        running = threads.submit(Preparing(Channel(theirs), Channel(its)).run)
        with ours:
            verifier.send(PreparingSetup(Pairs(), ["diagnose"], ahead, SETUP))
            messages = http.messages()
            assert next(messages).port == 0
            yield http, messages, verifier, verifier.messages()
        running.result(SECONDS)


def test_pairs_are_prepared_a_few_at_a_time_and_their_answers_become_verdicts() -> None:
    prompts = [f"prompt {level}" for level in range(20)]
    with preparing() as (http, verdicts, verifier, prepared):
        http.send(Submitted(5, PIXELS, prompts, "diagnose"))
        parts: list[Prepared] = [next(prepared) for _ in range(3)]
        assert sorted(len(part.pairs) for part in parts) == [4, 8, 8]
        assert {part.detail for part in parts} == {"diagnose"}
        found = dict(pair for part in parts for pair in part.pairs)
        assert found == {5 + level: (level, prompts[level]) for level in range(20)}
        verifier.send(Answered([(7, RawAnswer("two")), (8, MemoryError("full"))], True))
        (one, other), ending = next(verdicts)
        assert ending
        assert one[0] == 7
        assert (one[1].text, one[1].scores) == ("two", {"width": 3.0, "height": 2.0})
        assert other[0] == 8
        assert isinstance(other[1], MemoryError)


def test_a_pair_that_is_taken_back_is_taken_back_everywhere() -> None:
    with preparing() as (http, verdicts, verifier, prepared):
        http.send(Submitted(0, PIXELS[:2], ["x", "y"], "diagnose"))
        assert len(next(prepared).pairs) == 2
        http.send(Withdrawn([0]))
        assert next(prepared) == Withdrawn([0])
        verifier.send(Answered([(0, RawAnswer("x")), (1, RawAnswer("y"))], False))
        ((number, verdict),) = next(verdicts).results
        assert (number, verdict.text) == (1, "y")


def test_no_more_pairs_are_prepared_than_engines_need() -> None:
    with preparing(ahead=8) as (http, verdicts, verifier, prepared):
        http.send(Submitted(0, PIXELS, ["x"] * 20, "diagnose"))
        parts = (message for message in prepared if isinstance(message, Prepared))
        assert [number for number, _ in next(parts).pairs] == [*range(8)]
        # One that waits, and one whose place is free then.
        http.send(Withdrawn([9, 3]))
        assert [number for number, _ in next(parts).pairs] == [8, *range(10, 17)]
        verifier.send(Answered([(number, RawAnswer("x")) for number in range(9)], False))
        assert len(next(verdicts).results) == 8
        assert [number for number, _ in next(parts).pairs] == [17, 18, 19]


def test_a_pair_that_is_taken_back_before_it_is_sent_is_taken_back_again() -> None:
    (ours, theirs), (engine, its) = socket.socketpair(), socket.socketpair()
    http, withdrawn = Channel(ours), Event()

    class Late(Channel):
        def send(self, message: object) -> None:
            if isinstance(message, Prepared):
                http.send(Withdrawn([0]))
                assert withdrawn.wait(SECONDS)
            super().send(message)
            withdrawn.set()

    with theirs, engine, its, ThreadPoolExecutor(1) as threads:
        running = threads.submit(Preparing(Channel(theirs), Late(its)).run)
        with ours:
            verifier = Channel(engine)
            verifier.send(PreparingSetup(Pairs(), ["diagnose"], 1, SETUP))
            http.send(Submitted(0, PIXELS[:1], ["x"], "diagnose"))
            messages = verifier.messages()
            assert next(messages) == Withdrawn([0])
            assert [number for number, _ in next(messages).pairs] == [0]
            assert next(messages) == Withdrawn([0])
        running.result(SECONDS)


def test_what_engines_do_not_serve_goes_on_as_it_is() -> None:
    with preparing() as (http, verdicts, verifier, prepared):
        http.send(Submitted(0, PIXELS[:1], ["x"], "score"))
        passed = next(prepared)
        assert isinstance(passed, Submitted)
        assert np.array_equal(passed.pixels[0], PIXELS[0])
        verdict = PlainVerdict({"overall": 0.5}, {}, (), "", "score", "")
        verifier.send(Answered([(0, verdict)], False))
        assert next(verdicts) == Answered([(0, verdict)], False)


def test_what_fails_here_fails_alone() -> None:
    with preparing() as (http, verdicts, verifier, prepared):
        http.send(Submitted(0, PIXELS[:4], ["x", "bad", "panic", "y"], "diagnose"))
        assert [number for number, _ in next(prepared).pairs] == [0, 3]
        failed = next(verdicts)
        (bad, error), (panicked, panic) = failed.results
        assert (bad, panicked) == (1, 2)
        assert isinstance(error, InputError)
        assert str(error) == "Too dark."
        assert isinstance(panic, ForeignError)
        assert "index out of range" in panic.text
        verifier.send(Answered([(0, RawAnswer("panic")), (3, RawAnswer("y"))], False))
        (first, error), (second, verdict) = next(verdicts).results
        assert (first, second) == (0, 3)
        assert "no such token" in error.text
        assert verdict.text == "y"


def test_a_pair_that_cannot_be_sent_ends_the_process_with_its_error() -> None:
    def fails() -> None:
        with preparing() as (http, verdicts, _, _):
            http.send(Submitted(0, PIXELS[:1], ["unsendable"], "diagnose"))
            assert list(verdicts) == []

    with pytest.raises(AttributeError, match="local object"):
        fails()


def test_a_processor_of_pairs_that_cannot_be_loaded_is_blamed_on_its_process(
    capfd: pytest.CaptureFixture[str],
) -> None:
    verifier: Any = FakeVerifier()
    verifier.live_details, verifier.room, verifier.pair_processor = ["diagnose"], 1, Unloadable()
    process = VerifierProcess(verifier, host="127.0.0.1", port=0, limits=RequestLimits())
    with pytest.raises(ServerProcessError, match=r"The preparing process .* with status 1"):
        process.run()
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_failure_of_the_preparing_process_is_told() -> None:
    verifier: Any = FakeVerifier()
    verifier.live_details, verifier.room, verifier.pair_processor = ["diagnose"], 1, divmod
    with serving_apart(verifier) as url:
        with pytest.raises(RuntimeError, match="no attribute 'prepare'"):
            Remote(url, patience=0).verify([noise(8, 8)], ["x"])
        assert "no attribute 'prepare'" in httpx.get(f"{url}/health").json()["last_failure"]
        Remote(url, patience=0).verify([noise(8, 8)], ["x"], detail="score")
        assert "last_failure" not in httpx.get(f"{url}/health").json()


def test_it_ends_where_the_verifiers_process_has_ended_before_its_first_message() -> None:
    (ours, theirs), (engine, its) = socket.socketpair(), socket.socketpair()
    with ours, its:
        engine.close()
        with theirs:
            Preparing(Channel(theirs), Channel(its)).run()
        assert list(Channel(ours).messages()) == []


PROGRAM = """
from tts_verifier.cli.serve import serve_command
serve_command(["--verifier", "shapes", "--port", "0"])
"""


def preparing_process(started: Any) -> int:
    """The id of the child of a server that does not speak HTTP."""
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    lines = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in children}
    (found,) = [child for child, line in lines.items() if "prepare_pairs" in line]
    return found


@pytest.mark.slow
def test_where_it_dies_the_command_ends_and_says_so() -> None:
    with process("-c", PROGRAM) as (started, url, _):
        assert Remote(url, patience=0).verify([noise(8, 8)], ["x"])
        os.kill(preparing_process(started), signal.SIGKILL)
        assert "Error: The preparing process must live as long as the server; it has ended by" in (
            rest_of(started)
        )
        assert started.wait(SECONDS) == 2


@pytest.mark.slow
def test_where_the_verifiers_process_dies_the_others_end_and_leave_the_port() -> None:
    with process("-c", PROGRAM) as (started, url, _), ThreadPoolExecutor(1) as threads:
        asked = threads.submit(Remote(url, patience=0).verify, [noise(8, 8)] * 64, ["x"] * 64)
        while not waiting(url):
            pass
        started.kill()
        # To its end, which comes when the other processes, which have the pipe too, have ended.
        assert "Traceback" not in rest_of(started)
        assert isinstance(asked.exception(SECONDS), ServerError)
        with socket.create_server(("127.0.0.1", int(url.rpartition(":")[2]))):
            pass


@pytest.mark.slow
def test_a_signal_ends_it_when_what_it_accepted_is_answered() -> None:
    with process("-c", PROGRAM) as (started, url, _), ThreadPoolExecutor(1) as threads:
        asked = threads.submit(Remote(url, patience=0).verify, [noise(8, 8)] * 32, ["x"] * 32)
        while not waiting(url):
            pass
        started.send_signal(signal.SIGTERM)
        assert len(asked.result(SECONDS)) == 32
        next(read_until(started, "(Finished server process)"))
        assert started.wait(SECONDS) == 0
