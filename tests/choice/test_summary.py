"""What a run achieved, in numbers, words and one sheet of pictures."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tts_verifier.analysis.contact_sheet import sheet, write_chosen
from tts_verifier.choice.summary import (
    PromptSummary,
    Summary,
    summarise,
    summarise_prompt,
    wilson,
)
from tts_verifier.choice.summary_output import summary_text
from tts_verifier.errors import RunError
from tts_verifier.types import Draw, InMemory, Prompt, Trial, Verdict


def trial(prompt: str, index: int, objective: float, **fields: object) -> Trial:
    picture = Image.new("RGB", (8, 4), (index * 20, 0, 0))
    defaults = {"image": InMemory(picture), "verdict": Verdict({"overall": objective})}
    base = dict(progress=1.0, objective=objective, **{**defaults, **fields})
    return Trial(f"{prompt}{index}", Prompt(prompt, f"text {prompt}"), 0, Draw(index), **base)


def summary(*trials: Trial) -> Summary:
    histories: dict[str, list[Trial]] = {}
    for t in trials:
        histories.setdefault(t.prompt.id, []).append(t)
    return summarise([summarise_prompt(h[0].prompt, h) for h in histories.values()])


def judged(prompt: str, *passes: int) -> list[Trial]:
    """The second of a prompt's trials has the best objective."""
    values = [0.4, 0.9, 0.5]
    return [trial(prompt, i, values[i], judge={"passed": float(p)}) for i, p in enumerate(passes)]


def test_the_judge_says_first_chosen_and_best_possible() -> None:
    result = summary(
        *judged("a", 0, 1, 0), *judged("b", 0, 0, 1), *judged("c", 1, 1, 0), *judged("d", 0, 0, 0)
    )
    assert result.judge is not None
    assert (result.judge.first, result.judge.chosen, result.judge.best) == (0.25, 0.5, 0.75)
    assert result.judge.closed == 0.5
    low, high = result.judge.closed_interval
    assert low <= 0.5 <= high
    assert result.objective_first == pytest.approx(0.4)
    assert result.objective_chosen == pytest.approx(0.9)


def test_the_text_says_it_all() -> None:
    text = summary_text(summary(*judged("a", 0, 1, 0), *judged("b", 0, 0, 1)))
    assert text.splitlines() == [
        "prompt    objective       overall         judge_passed",
        "a text a  0.400 -> 0.900  0.400 -> 0.900  0.000 -> 1.000",
        "b text b  0.400 -> 0.900  0.400 -> 0.900  0.000 -> 0.000",
        "",
        "2 prompts, 6 candidates, 0 prompts with a tie for the best",
        "objective, mean: first draw 0.400 -> chosen 0.900",
        "held-out judge, pass rate (95 % Wilson): first draw 0.0% [0.0%, 65.8%] -> chosen "
        "50.0% [9.5%, 90.5%] -> best possible 100.0% [34.2%, 100.0%]",
        "share of that distance closed: 50.0% [0.0%, 100.0%] (95 % bootstrap over prompts)",
    ]


def test_without_a_judge_the_text_says_so() -> None:
    assert "No held-out judge was named" in summary_text(summary(trial("a", 0, 0.5)))


def test_a_judge_without_pass_or_fail_gives_means() -> None:
    trials = [trial("a", i, o, judge={"score": s}) for i, o, s in [(0, 0.1, 0.2), (1, 0.3, 0.6)]]
    text = summary_text(summary(*trials))
    assert "mean score: first draw 0.200 -> chosen 0.600 -> best possible 0.600" in text


def test_ties_and_failures_are_counted() -> None:
    failed = trial("b", 0, math.nan, error="told to fail", image=None, verdict=None)
    result = summary(trial("a", 0, 0.5), trial("a", 1, 0.5), trial("a", 2, 0.4), failed)
    assert (result.ties, result.failed, result.candidates) == (1, 1, 4)
    assert "4 candidates, 1 failed, 1 prompts with a tie" in summary_text(result)
    assert "b text b  none -> none" in summary_text(result)


def test_a_prompt_without_a_picture_counts_as_not_passed() -> None:
    unusable = trial("b", 0, math.nan, error="no score", judge={"passed": 1.0})
    result = summary(*judged("a", 0, 1, 0), unusable)
    assert result.judge is not None
    assert (result.judge.first, result.judge.chosen, result.judge.best) == (0.5, 0.5, 1.0)


def test_a_run_without_any_picture_has_a_summary() -> None:
    failed = trial("a", 0, math.nan, error="x", image=None, verdict=None)
    text = summary_text(summary(failed))
    assert text.startswith("No prompt has a usable image.")
    assert "first draw nan -> chosen nan" in text


def test_no_distance_has_no_share() -> None:
    result = summary(*judged("a", 1, 1, 1))
    assert result.judge is not None
    assert math.isnan(result.judge.closed)
    assert summary_text(result).endswith("share of that distance closed: none to close")
    assert math.isnan(result.judge.closed_interval[0])


def test_wilson_agrees_with_the_textbook() -> None:
    # Agresti and Coull 1998: 0 of 10 and 5 of 10.
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def rows(*names: str) -> list[PromptSummary]:
    return list(summary(*(trial(n, i, i / 10) for n in names for i in (3, 9))).prompts)


def test_the_sheet_has_first_beside_chosen() -> None:
    picture = np.asarray(sheet(rows("a", "b")))
    reds = {tuple(pixel) for pixel in picture.reshape(-1, 3)}
    assert {(60, 0, 0), (180, 0, 0)} <= reds
    assert picture.shape[1] > 4 * 192


def test_the_sheet_takes_any_text_and_any_shape() -> None:
    tall = InMemory(Image.new("RGB", (1, 500)))
    cat = Trial("x", Prompt("x", "一只猫" * 50), 0, Draw(1), 1.0, None, 0.5, image=tall)
    nothing = PromptSummary(cat.prompt, None, None)
    assert sheet([PromptSummary(cat.prompt, cat, cat), nothing]).width > 0
    assert sheet([]).width > 0


def test_chosen_pictures_are_named_by_prompt_and_stay_inside(tmp_path: Path) -> None:
    write_chosen(rows("a", "../../x", "一"), tmp_path / "run")
    names = sorted(p.name for p in (tmp_path / "run" / "chosen").iterdir())
    assert names == ["%E4%B8%80.png", "..%2F..%2Fx.png", "a.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "chosen.png").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/run cannot be written"):
        write_chosen(rows("a"), tmp_path / "file" / "run")
