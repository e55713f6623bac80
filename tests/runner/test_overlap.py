"""The verifier judges a batch while the generator draws the next."""

import threading
import time

import numpy as np
import pytest
from searches import SeedBeam

from tts_verifier import BestOfN, run
from tts_verifier.errors import InputError
from tts_verifier.log import read_header
from tts_verifier.log.reader import read_trials
from tts_verifier.runner import RunResult
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Budget

TICK = 0.05


class Drawer(FakeGenerator):
    """Sleeps as it draws, and counts what was drawn and not yet judged."""

    drawn = 0

    def generate(self, jobs):
        time.sleep(TICK)
        self.drawn += 1
        return super().generate(jobs)


class Judge(FakeVerifier):
    def __init__(self, drawer, factor=1.0):
        super().__init__()
        self.drawer, self.factor = drawer, factor
        self.judged, self.most, self.threads = 0, 0, set()

    def verify(self, images, prompts, *, detail="diagnose"):
        time.sleep(TICK * self.factor)
        self.judged += 1
        self.most = max(self.most, self.drawer.drawn - self.judged)
        self.threads.add(threading.current_thread())
        return super().verify(images, prompts, detail=detail)


def timed(factor, overlap) -> tuple[RunResult, Judge, float]:
    drawer = Drawer(batch_size=1)
    verifier = Judge(drawer, factor)
    began = time.perf_counter()
    result = run(["a red circle"], drawer, verifier, BestOfN(24), overlap=overlap)
    return result, verifier, time.perf_counter() - began


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_drawing_and_judging_take_little_more_than_the_longer(factor):
    result, _, seconds = timed(factor, overlap=True)
    cost = [trial.cost for trial in result.trials]
    larger = max(sum(c.generate_seconds for c in cost), sum(c.verify_seconds for c in cost))
    assert larger >= 24 * TICK
    assert seconds <= 1.1 * larger
    assert result.busy["generate"] + result.busy["verify"] > 1.4
    assert max(result.busy.values()) <= 1


def test_without_overlap_they_take_turns_in_one_thread():
    result, verifier, seconds = timed(0.2, overlap=False)
    assert seconds >= 24 * TICK * 1.2
    assert verifier.threads == {threading.current_thread()}
    assert sum(result.busy.values()) <= 1


def test_the_queue_is_bounded():
    _, verifier, _ = timed(3.0, overlap=True)
    assert verifier.most <= 3


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
        run(["a red circle"], Drawer(), Judge(Drawer()), BestOfN(3), folder=tmp_path)
    (session,) = read_header(tmp_path)["sessions"]
    assert session["seconds"] > 0
    assert 0 < session["busy"]["generate"] < 1
    assert 0 < session["busy"]["verify"] < 1
