"""How a result shows itself: in one line from memory, and in a notebook."""

import shutil
from pathlib import Path

import pytest

from tts_verifier import BestOfN, run
from tts_verifier.errors import RunError
from tts_verifier.testing import FakeGenerator, FakeVerifier

PROMPTS = ["a <b> cat", "a dog"]


def test_a_result_is_one_line_and_a_notebook_shows_first_and_chosen() -> None:
    result = run(PROMPTS, FakeGenerator(), FakeVerifier(), BestOfN(3))
    assert repr(result) == "RunResult(prompts 2, candidates 6, chosen 2, failed 0)"
    html = result._repr_html_()
    assert html.count("<img") == 2 * 2
    assert "a &lt;b&gt; cat · 0." in html
    assert "candidates 6" in html


def test_the_line_does_not_need_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run(PROMPTS, FakeGenerator(), FakeVerifier(), BestOfN(2), folder=folder)
    line = f"RunResult(prompts 2, candidates 4, chosen 2, failed 0, in {folder})"
    assert repr(result) == line
    assert result._repr_html_().count("<img") == 4
    again = run(PROMPTS, FakeGenerator(), FakeVerifier(), BestOfN(2), folder=folder)
    shutil.rmtree(folder)
    assert repr(again) == line
    with pytest.raises(RunError):
        again._repr_html_()


def test_a_prompt_without_an_image_is_shown_too() -> None:
    fails = FakeGenerator(fails=lambda job: job.prompt.text == "a dog")
    result = run(PROMPTS, fails, FakeVerifier(), BestOfN(2))
    assert "chosen 1, failed 2" in repr(result)
    assert "a dog · no usable image → no usable image" in result._repr_html_()
