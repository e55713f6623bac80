"""What a run says of itself while it goes on."""

import io
import json
import math
import sys

import pytest

from tts_verifier.runner.progress import (
    Progress,
    ProgressBar,
    ProgressLines,
    progress_view,
    status_json,
    status_line,
)
from tts_verifier.types import Cost, Draw, Prompt, Trial


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
        "rate": None, "seconds_left": None, "best": None, "busy": None,
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


def test_a_bar_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as progress:
        progress.expect(2)
        progress.phase("repaint")
        progress.done([trial(0.5), trial(math.nan, "why")])
    shown = capsys.readouterr().err
    assert "repaint" in shown
    assert "2/2" in shown
    assert "best 0.500  1 failed" in shown


def test_the_style_follows_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress_view("auto"), ProgressLines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_view("auto") as bar:
        assert isinstance(bar, ProgressBar)
    assert type(progress_view("none")) is Progress
