"""The schedules that a log with all previews finds, against live runs of the same schedules."""

from statistics import fmean

import numpy as np
import pytest

from tts_verifier import run
from tts_verifier.analysis.replay import replay_trials
from tts_verifier.analysis.replay_output import replay_text
from tts_verifier.analysis.schedule_search import measure_to_search, search_schedules
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.strategies.successive_halving import SuccessiveHalving
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Prompt

STOPS = (0.3, 0.6, 1.0)
PROMPTS = [Prompt(f"{i:02}", f"prompt {i}") for i in range(16)]


@pytest.fixture(scope="module")
def replay():
    search = SuccessiveHalving(8, keep=1.0, stops=STOPS)
    return replay_trials(run(PROMPTS, FakeGenerator(), FakeVerifier(), search).trials)


def test_schedules_rise_in_cost_and_drop_something(replay) -> None:
    outcomes = replay.schedules
    assert len(outcomes) > 2
    assert replay.searched == "objective"
    for outcome in outcomes:
        assert outcome.stops == (0.3, 0.6)
        assert list(outcome.counts) == sorted(outcome.counts, reverse=True)
        assert outcome.counts[-1] < outcome.counts[0]
        assert outcome.value.low <= outcome.value.mean <= outcome.value.high


def test_a_live_run_of_a_schedule_gives_what_the_replay_says(replay) -> None:
    whole = [outcome for outcome in replay.schedules if outcome.counts[0] == 8]
    assert whole
    for outcome in whole:
        search = SuccessiveHalving(8, keep=outcome.keep, stops=STOPS, trust=-1.0)
        live = run(PROMPTS[1::2], FakeGenerator(), FakeVerifier(), search)
        chosen = fmean(choice.trial.objective for choice in live.choices.values())
        assert chosen == pytest.approx(outcome.value.mean)
        spent = sum(t.cost.network_evaluations for t in live.trials) / 8
        assert spent == pytest.approx(outcome.evaluations)


def test_the_text_has_a_line_for_each_schedule(replay) -> None:
    text = replay_text(replay)
    assert "schedules picked by objective on half of the prompts" in text
    outcome = replay.schedules[-1]
    assert f"{outcome.counts[1]} at 30%, {outcome.counts[2]} at 60%" in text


def test_without_previews_or_with_few_prompts_there_are_none() -> None:
    plain = run(PROMPTS, FakeGenerator(), FakeVerifier(), BestOfN(4)).trials
    search = SuccessiveHalving(4, keep=1.0, stops=STOPS)
    few = run(PROMPTS[:7], FakeGenerator(), FakeVerifier(), search).trials
    for trials in (plain, few):
        result = replay_trials(trials)
        assert result.schedules == ()
        assert "schedules" not in replay_text(result)
    assert search_schedules([], []) == ()


def test_prompts_without_a_value_for_every_draw_are_left_out() -> None:
    search = SuccessiveHalving(4, keep=1.0, stops=STOPS)
    result = run(PROMPTS[:8], FakeGenerator(), FakeVerifier(), search)
    unknown = replay_trials(result.trials)
    assert unknown.schedules
    assert search_schedules([[]] * 8, [np.array([np.nan])] * 8) == ()


def test_the_pass_of_the_judge_picks_where_there_is_one() -> None:
    assert measure_to_search(["objective", "judge_score", "judge_passed"]) == "judge_passed"
    assert measure_to_search(["objective", "judge_score"]) == "judge_score"
    assert measure_to_search(["objective"]) == "objective"
