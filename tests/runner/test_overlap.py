"""A batch is verified while the next one is generated."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from searches import SeedBeam

from tts_verifier import BestOfN, run
from tts_verifier.errors import InputError
from tts_verifier.log import read_header
from tts_verifier.log.reader import read_trials
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Budget, Job, Sample, Verdict

N = 12
"""Batches of one candidate in a run of these tests."""


class Generator(FakeGenerator):
    """Counts its batches; from the second on, each meets the verification of an earlier one."""

    def __init__(self, meeting: threading.Barrier | None = None) -> None:
        super().__init__(batch_size=1)
        self.meeting, self.batches = meeting, 0

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        self.batches += 1
        if self.meeting is not None and self.batches > 1:
            self.meeting.wait()
        return super().generate(jobs)


class Verifier(FakeVerifier):
    """Notes its thread, and how many batches wait; all but the last meet the generator."""

    def __init__(
        self, generator: Generator, before: Callable[[int], None] = lambda _: None
    ) -> None:
        super().__init__()
        self.generator, self.before = generator, before
        self.batches = self.most_unverified = 0
        self.threads: set[threading.Thread] = set()

    def verify(self, images: Any, prompts: Any, **options: Any) -> list[Verdict]:
        self.batches += 1
        self.before(self.batches)
        unverified = self.generator.batches - self.batches + 1
        self.most_unverified = max(self.most_unverified, unverified)
        self.threads.add(threading.current_thread())
        if self.generator.meeting is not None and self.batches < N:
            self.generator.meeting.wait()
        return super().verify(images, prompts, **options)


def test_every_batch_is_verified_while_the_next_is_generated() -> None:
    # Neither side passes the barrier alone: without overlap it breaks, and the run fails.
    generator = Generator(threading.Barrier(2, timeout=60))
    verifier = Verifier(generator)
    result = run(["a red circle"], generator, verifier, BestOfN(N), overlap=True)
    assert [trial.error for trial in result.trials] == [""] * N
    assert threading.current_thread() not in verifier.threads
    assert max(result.busy.values()) <= 1


def test_without_overlap_they_take_turns_in_one_thread() -> None:
    generator = Generator()
    verifier = Verifier(generator)
    result = run(["a red circle"], generator, verifier, BestOfN(N), overlap=False)
    assert verifier.threads == {threading.current_thread()}
    assert verifier.most_unverified == 1
    assert sum(result.busy.values()) <= 1


def test_the_queue_is_bounded() -> None:
    generator = Generator()

    def be_slow(batch: int) -> None:
        deadline = time.monotonic() + 60
        while generator.batches < min(batch + 2, N) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)  # time for a generator that does not stop

    verifier = Verifier(generator, be_slow)
    run(["a red circle"], generator, verifier, BestOfN(N), overlap=True)
    assert verifier.most_unverified == 3


def test_a_run_comes_out_the_same(tmp_path):
    prompts = [f"a red circle {i}" for i in range(5)]
    parts = (FakeGenerator(batch_size=3), FakeVerifier(), SeedBeam())
    one = run(prompts, *parts, folder=tmp_path / "one")
    other = run(prompts, *parts, overlap=True, folder=tmp_path / "other")
    assert [t.id for t in one.trials] == [t.id for t in other.trials]
    for name, image in one.images.items():
        assert np.array_equal(np.asarray(image), np.asarray(other.images[name]))
    rows = [{t.id for t in read_trials(tmp_path / name)} for name in ("one", "other")]
    assert rows[0] == rows[1]


def test_a_budget_of_candidates_is_kept():
    parts = (FakeGenerator(batch_size=1), FakeVerifier(), BestOfN(8))
    result = run(["a"], *parts, overlap=True, budget=Budget(candidates=5))
    assert len(result.trials) == 5


def test_an_error_of_the_verifier_ends_the_run():
    class Broken(FakeVerifier):
        def verify(self, images, prompts, *, detail="diagnose"):
            raise InputError("no such picture")

    with pytest.raises(InputError, match="no such picture"):
        run(["a"], FakeGenerator(), Broken(), BestOfN(4), overlap=True)


def test_the_header_says_how_busy_each_side_was(tmp_path):
    for _ in range(2):
        run(["a red circle"], FakeGenerator(), FakeVerifier(), BestOfN(3), folder=tmp_path)
    (session,) = read_header(tmp_path)["sessions"]
    assert session["seconds"] > 0
    assert 0 < session["busy"]["generate"] < 1
    assert 0 < session["busy"]["verify"] < 1
