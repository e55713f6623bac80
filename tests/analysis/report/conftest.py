"""A browser, and a report of hostile texts to open in it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_pages import EVIL, Wordy

from tts_verifier.analysis.report import write_report
from tts_verifier.runner import run
from tts_verifier.testing import FakeGenerator
from tts_verifier.types import Prompt

sys.path.append(str(Path(__file__).parents[3] / "examples" / "benchmarks"))
from chromium import Chromium, find_chromium
from searches import InpaintReroll

PROMPTS = [Prompt("one", "a red circle"), Prompt("two", EVIL), Prompt("three", "x" * 300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a run"
    run(PROMPTS, FakeGenerator(size=64), Wordy(), InpaintReroll(4), judge=Wordy(), folder=folder)
    write_report([folder], folder / "report.html")
    write_report([folder], folder / "inline.html", inline=True)
    return folder


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        pytest.skip("needs chromium")
    with Chromium(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser
