"""What dropping candidates by previews would have given, from a log that finished all of them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_verifier import run
from tts_verifier.analysis.pruning_outcomes import whole_draws
from tts_verifier.analysis.replay import replay_trials
from tts_verifier.analysis.replay_output import replay_text
from tts_verifier.strategies.successive_halving import SuccessiveHalving
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Continue, Cost, Draw, Prompt, Trial


def draw_with_preview(number, preview, final, *, judge_score=0.0, error=""):
    """Returns a preview after 10 of 40 evaluations, and the finished trial."""

    def trial(name, proposal, progress, objective, evaluations, error=""):
        cost = Cost(network_evaluations=evaluations, generate_seconds=evaluations / 10)
        return Trial(
            name, Prompt("p", "p"), 0, proposal, progress, None, objective, cost,
            judge={"passed": judge_score} if progress == 1 else {}, error=error,
        )  # fmt: skip

    return [
        trial(f"a{number}", Draw(number, 0.25), 0.25, preview, 10),
        trial(f"b{number}", Continue(f"a{number}", 1.0, 0), 1.0, final, 30, error),
    ]


def test_the_best_previews_alone_are_finished():
    log = [
        *draw_with_preview(0, 0.9, 0.5, judge_score=0.0),
        *draw_with_preview(1, 0.1, 0.9, judge_score=1.0),
        *draw_with_preview(2, 0.8, 0.7, judge_score=1.0),
        *draw_with_preview(3, 0.2, 0.1, judge_score=0.0),
    ]
    done = replay_trials(log)
    assert (done.candidates, done.evaluations, done.left_out) == (4, 40, 0)
    half, quarter = done.pruning
    assert (half.stop, half.share, half.evaluations, half.seconds) == (0.25, 0.5, 100, 10)
    assert (half.values["objective"].mean, half.values["judge_passed"].mean) == (0.7, 1.0)
    assert (quarter.share, quarter.evaluations) == (0.25, 70)
    assert (quarter.values["objective"].mean, quarter.values["judge_passed"].mean) == (0.5, 0.0)
    assert half.agreement == pytest.approx(-0.4)
    assert "25%         0.5   -0.40      100" in replay_text(done)


def test_a_failed_end_is_never_the_best():
    log = [
        *draw_with_preview(0, 0.9, math.nan, error="NaN"),
        *draw_with_preview(1, 0.1, 0.3, judge_score=1.0),
    ]
    (half,) = replay_trials(log).pruning
    assert math.isnan(half.values["objective"].mean)
    assert half.evaluations == 50


def test_draws_of_a_prompt_with_dropped_or_branched_previews_are_left_out():
    whole = [*draw_with_preview(0, 0.9, 0.5), *draw_with_preview(1, 0.1, 0.9)]
    assert [c.last.id for c in whole_draws(whole)] == ["b0", "b1"]
    assert whole_draws(whole[:3]) == []
    twice = Continue("a0", 1.0, 7)
    branch = Trial("c", Prompt("p", "p"), 0, twice, 1.0, None, 0.5, Cost())
    assert whole_draws([*whole, branch]) == []


@given(st.integers(2, 6), st.integers(0, 99))
def test_the_outcome_is_what_a_live_search_chooses(count, seed):
    parts = FakeGenerator(), FakeVerifier()
    everything = run(["a red circle"], *parts, SuccessiveHalving(count, 1.0, stops=(0.5, 1.0)),
                     seed=seed)  # fmt: skip
    for cut in replay_trials(everything.trials).pruning:
        live = run(["a red circle"], *parts, seed=seed,
                   strategy=SuccessiveHalving(count, cut.share, stops=(0.5, 1.0)))  # fmt: skip
        (choice,) = live.choices.values()
        assert cut.values["objective"].mean == pytest.approx(choice.trial.objective)
        assert cut.evaluations == sum(t.cost.network_evaluations for t in live.trials)
