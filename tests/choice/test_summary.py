"""The summary of a run, in numbers and as text."""

import math

import pytest
from PIL import Image
from rich.cells import cell_len

from tts_verifier.choice.summary import (
    Summary,
    summarise,
    summarise_prompt,
    wilson,
)
from tts_verifier.choice.summary_output import summary_text
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


def judged_trials(prompt: str, *passes: int) -> list[Trial]:
    """Returns the trials of a prompt, by the judge's word; the second has the best objective."""
    values = [0.4, 0.9, 0.5]
    return [trial(prompt, i, values[i], judge={"passed": float(p)}) for i, p in enumerate(passes)]


def test_the_judge_scores_the_first_the_chosen_and_the_best_image() -> None:
    outcomes = [(0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 0, 0)] * 3
    result = summary(
        *(t for number, passes in enumerate(outcomes) for t in judged_trials(f"{number}", *passes))
    )
    assert result.judge is not None
    assert (result.judge.first, result.judge.chosen, result.judge.best) == (0.25, 0.5, 0.75)
    assert result.judge.closed == 0.5
    low, high = result.judge.closed_interval
    assert low <= 0.5 <= high
    assert result.objective_first == pytest.approx(0.4)
    assert result.objective_chosen == pytest.approx(0.9)


def test_the_text_has_tables_and_no_interval_of_two_prompts() -> None:
    text = summary_text(summary(*judged_trials("a", 0, 1, 0), *judged_trials("b", 0, 0, 1)))
    assert text.splitlines() == [
        "prompt          objective            judge",
        "──────────────────────────────────────────",
        "a text a   0.400 -> 0.900   0.000 -> 1.000",
        "b text b   0.400 -> 0.900   0.000 -> 0.000",
        "",
        "2 prompts, 6 candidates, 0 prompts with a tie for the best",
        "",
        "mean over prompts   first draw   chosen     gain",
        "────────────────────────────────────────────────",
        "objective                0.400    0.900   +0.500",
        "overall                  0.400    0.900   +0.500",
        "judge_passed             0.000    0.500   +0.500",
        "",
        "held-out judge, pass rate:",
        "  first draw    0.0%",
        "  chosen        50.0%",
        "  best possible 100.0%",
        "share of that distance closed: 50.0%",
    ]


def test_ten_prompts_have_intervals() -> None:
    rows = [judged_trials(f"{number}", 0, number % 2, 1) for number in range(10)]
    text = summary_text(summary(*(t for row in rows for t in row)))
    assert "pass rate (95 % Wilson):" in text
    assert "  chosen        50.0% [23.7%, 76.3%]\n" in text
    assert "closed: 50.0% [20.0%, 80.0%] (95 % bootstrap)" in text


def test_the_text_fits_80_columns_and_is_one_line_a_prompt() -> None:
    trials = [trial(f"{i:04d}", i, 0.5, judge={"semantic_alignment" * 3: 0.5}) for i in range(60)]
    for t, text in zip(trials, ["长" * 90, "two\nlines", "\x1b[2Jgone"], strict=False):
        object.__setattr__(t.prompt, "text", text)
    text = summary_text(summary(*trials))
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    assert "0001 two lines" in text
    assert "0002 \\x1b[2Jgone" in text
    assert "0049 text 0049" in text
    assert "0050" not in text
    assert "and 10 more prompts" in text


def test_without_a_judge_the_text_says_so() -> None:
    assert "No held-out judge was named" in summary_text(summary(trial("a", 0, 0.5)))


def test_a_judge_without_pass_or_fail_gives_means() -> None:
    trials = [trial("a", i, o, judge={"score": s}) for i, o, s in [(0, 0.1, 0.2), (1, 0.3, 0.6)]]
    text = summary_text(summary(*trials))
    assert "held-out judge, mean score:\n  first draw    0.200\n  chosen        0.600\n" in text


def test_ties_and_failures_are_counted() -> None:
    failed = trial("b", 0, math.nan, error="told to fail", image=None, verdict=None)
    result = summary(trial("a", 0, 0.5), trial("a", 1, 0.5), trial("a", 2, 0.4), failed)
    assert (result.ties, result.failed, result.candidates) == (1, 1, 4)
    assert "4 candidates, 1 failed, 1 prompts with a tie" in summary_text(result)
    assert "b text b     none -> none" in summary_text(result)


def test_a_prompt_without_a_picture_counts_as_not_passed() -> None:
    unusable = trial("b", 0, math.nan, error="no score", judge={"passed": 1.0})
    result = summary(*judged_trials("a", 0, 1, 0), unusable)
    assert result.judge is not None
    assert (result.judge.first, result.judge.chosen, result.judge.best) == (0.5, 0.5, 1.0)


def test_a_run_without_any_picture_has_a_summary() -> None:
    failed = trial("a", 0, math.nan, error="x", image=None, verdict=None)
    text = summary_text(summary(failed))
    assert text.startswith("No prompt has a usable image.")
    assert "1 candidates, 1 failed" in text


def test_no_distance_has_no_share() -> None:
    result = summary(*judged_trials("a", 1, 1, 1))
    assert result.judge is not None
    assert math.isnan(result.judge.closed)
    assert summary_text(result).endswith("share of that distance closed: none to close")
    assert math.isnan(result.judge.closed_interval[0])


def test_wilson_agrees_with_the_textbook() -> None:
    # Agresti and Coull 1998: 0 of 10 and 5 of 10.
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
