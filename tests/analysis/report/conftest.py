"""A report of hostile texts, to open in a browser."""

from pathlib import Path

import pytest
from browser_pages import EVIL, Wordy
from searches import InpaintReroll

from tts_verifier.analysis.report import write_report
from tts_verifier.runner import run
from tts_verifier.testing import FakeGenerator
from tts_verifier.types import Prompt

PROMPTS = [Prompt("one", "a red circle"), Prompt("two", EVIL), Prompt("three", "x" * 300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a run"
    run(PROMPTS, FakeGenerator(size=64), Wordy(), InpaintReroll(4), judge=Wordy(), folder=folder)
    write_report([folder], folder / "report.html")
    write_report([folder], folder / "inline.html", inline=True)
    return folder
