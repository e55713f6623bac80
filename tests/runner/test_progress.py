"""What a run says of itself while it goes on."""

import io
import json
import math
import sys
from collections.abc import Sequence

import pytest

from tts_verifier.runner import RunSetup, execute
from tts_verifier.runner.progress import (
    Progress,
    ProgressBar,
    ProgressCounts,
    ProgressLines,
    progress_view,
    status_json,
    status_line,
)
from tts_verifier.runner.prompts import as_prompts
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Cost, Draw, Job, Prompt, Sample, Trial, report_step


def trial(objective: float, error: str = "", seconds: float = 1.0) -> Trial:
    cost = Cost(generate_seconds=seconds * 0.75, verify_seconds=seconds * 0.25)
    return Trial("x", Prompt("p", "p"), 0, Draw(1), 1.0, None, objective, cost, error=error)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_figures_are_of_what_this_process_did() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.expect(12)
    progress.phase("draw")
    progress.done([trial(0.9, seconds=50.0)] * 4, from_log=True)
    clock.now += 8
    progress.done([trial(0.5), trial(math.nan, "why")])
    now = progress.status()
    assert (now.phase, now.done, now.expected, now.failed) == ("draw", 6, 12, 1)
    assert (now.rate, now.seconds_left, now.best, now.busy) == (0.25, 24.0, 0.9, 0.25)
    assert status_line(now) == (
        "draw: 6 of 12 candidates, 0.25 a second, 0:24 left, best 0.900, 1 failed, busy 25%"
    )


def test_what_is_not_known_is_not_said() -> None:
    now = Progress(Clock()).status()
    assert status_line(now) == "load: 0 of 0 candidates"
    assert json.loads(status_json(now)) == {
        "event": "progress", "phase": "load", "done": 0, "expected": 0, "failed": 0,
        "rate": None, "seconds_left": None, "best": None, "busy": None, "step": 0, "steps": 0,
        "stalled": "",
    }  # fmt: skip


def test_prompts_that_were_not_asked_yet_are_expected_to_be_like_the_others() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.begin(4, rows_in_log=20)
    progress.expect(8, new_prompt=True)
    clock.now += 8
    progress.done([trial(0.5)] * 4)
    now = progress.status()
    assert (now.done, now.expected, now.seconds_left) == (24, 32, 16.0)
    progress.expect(4)
    for count in (8, 8, 4):
        progress.expect(count, new_prompt=True)
        progress.done([trial(0.5)] * count, from_log=True)
    now = progress.status()
    assert (now.done, now.expected) == (24, 32)


@pytest.mark.parametrize(("seconds", "shown"), [(59.6, "1:00"), (3700, "1:01:40")])
def test_long_times_are_hours(seconds: float, shown: str) -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.expect(2)
    clock.now += seconds
    progress.done([trial(0.5)])
    assert f"{shown} left" in status_line(progress.status())


def test_a_line_comes_now_and_then_and_at_the_end() -> None:
    clock, out = Clock(), io.StringIO()
    with ProgressLines(out, status_line, seconds=10, clock=clock) as progress:
        progress.expect(30)
        for _ in range(30):
            clock.now += 1
            progress.done([trial(0.5)])
    lines = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"load: {done} of 30 candidates" for done in (1, 11, 21, 30)
    ]


def test_a_shard_that_stalls_is_shown_also_before_the_first_candidate() -> None:
    out = io.StringIO()
    with ProgressLines(out, status_line, seconds=0, clock=Clock()) as progress:
        for minutes in (1, 1, 2):
            stalled = f"shard 00003: nothing new for {minutes} min"
            progress.show_counts("load", ProgressCounts(), 2, stalled=stalled)
    assert out.getvalue().splitlines() == [
        f"load: 0 of 0 candidates, shard 00003: nothing new for {minutes} min" for minutes in (1, 2)
    ]


def test_a_bar_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as progress:
        progress.expect(2)
        progress.phase("repaint")
        progress.done([trial(0.5), trial(math.nan, "why")])
    shown = capsys.readouterr().err
    assert "repaint" in shown
    assert "2/2" in shown
    assert "best 0.500  1 failed" in shown


def test_steps_within_a_batch_are_progress() -> None:
    clock, out = Clock(), io.StringIO()
    with ProgressLines(out, status_line, seconds=5, clock=clock) as progress:
        progress.expect(4)
        progress.phase("draw")
        progress.start([Job(Prompt("p", "p"), Draw(1), (), "x", 0)] * 4)
        for step in range(1, 21):
            clock.now += 1
            progress.step(step, 20)
        assert progress.drawn == 4
        progress.done([trial(0.5)] * 4)
        progress.start([], again=False)
        assert progress.drawn == 0
    assert out.getvalue().splitlines()[:2] == [
        "draw: 0 of 4 candidates, step 1 of 20",
        "draw: 0 of 4 candidates, step 6 of 20",
    ]
    assert "draw: 4 of 4 candidates, 0.20 a second" in out.getvalue().splitlines()[-1]


@pytest.mark.parametrize("overlap", [False, True])
def test_the_bar_only_rises_and_counts_no_candidate_twice(overlap: bool) -> None:
    class Stepwise(FakeGenerator):
        def generate(self, jobs: Sequence[Job]) -> list[Sample]:
            report_step(1, 2)
            report_step(2, 2)
            return super().generate(jobs)

    class Seen(Progress):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[float] = []

        def show(self) -> None:
            self.seen.append(self.status().done + self.drawn)

    seen, generator = Seen(), Stepwise()
    generator.batch_size = 2
    setup = RunSetup(generator, FakeVerifier(), BestOfN(6), overlap=overlap)
    execute(setup, as_prompts(["a red circle"]), progress=seen)
    assert seen.seen == sorted(seen.seen)
    assert set(seen.seen) == {0, 1, 2, 3, 4, 5, 6}


def test_a_generator_reports_its_steps_to_the_run_that_called_it() -> None:
    class Stepwise(FakeGenerator):
        def generate(self, jobs: Sequence[Job]) -> list[Sample]:
            for step in range(3):
                report_step(step + 1, 3)
            return super().generate(jobs)

    class Seen(Progress):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[int, int]] = []

        def step(self, taken: int, total: int) -> None:
            self.seen.append((taken, total))

    seen = Seen()
    execute(
        RunSetup(Stepwise(), FakeVerifier(), BestOfN(1)),
        as_prompts(["a red circle"]),
        progress=seen,
    )
    assert seen.seen == [(1, 3), (2, 3), (3, 3)]
    report_step(1, 1)
    assert len(seen.seen) == 3, "outside a run nobody listens"


def test_a_run_that_goes_on_says_with_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    ProgressLines(out, status_line).begin(3, rows_in_log=24)
    with ProgressBar() as bar:
        bar.begin(3, rows_in_log=24)
    with progress_view("json") as lines:
        lines.begin(3, rows_in_log=24)
        lines.begin(3, rows_in_log=0)
    said = "Resuming: the log of this run holds 24 candidates already."
    assert out.getvalue() == f"{said}\n"
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == '{"event": "resume", "candidates": 24}\n'


def test_the_style_follows_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress_view("auto"), ProgressLines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_view("auto") as bar:
        assert isinstance(bar, ProgressBar)
    assert type(progress_view("none")) is Progress
