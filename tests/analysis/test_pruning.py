"""What pruning would have given, from a log in which all was finished."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_verifier import run
from tts_verifier.analysis.pruning import chains
from tts_verifier.analysis.replay import as_text, replay
from tts_verifier.strategies.successive_halving import SuccessiveHalving
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Continue, Cost, Draw, Prompt, Trial


def drawn(number, preview, final, *, judged=0.0, error=""):
    """A preview at a quarter of 40 evaluations, and the rest."""

    def trial(name, proposal, progress, objective, evaluations, error=""):
        cost = Cost(network_evaluations=evaluations, generate_seconds=evaluations / 10)
        return Trial(
            name, Prompt("p", "p"), 0, proposal, progress, None, objective, cost,
            judge={"passed": judged} if progress == 1 else {}, error=error,
        )  # fmt: skip

    return [
        trial(f"a{number}", Draw(number, 0.25), 0.25, preview, 10),
        trial(f"b{number}", Continue(f"a{number}", 1.0, 0), 1.0, final, 30, error),
    ]


def test_the_best_previews_alone_are_finished():
    log = [
        *drawn(0, 0.9, 0.5, judged=0.0),
        *drawn(1, 0.1, 0.9, judged=1.0),
        *drawn(2, 0.8, 0.7, judged=1.0),
        *drawn(3, 0.2, 0.1, judged=0.0),
    ]
    done = replay(log)
    assert (done.candidates, done.evaluations, done.left_out) == (4, 40, 0)
    half, quarter = done.pruning
    assert (half.stop, half.share, half.evaluations, half.seconds) == (0.25, 0.5, 100, 10)
    assert (half.values["objective"].mean, half.values["judge_passed"].mean) == (0.7, 1.0)
    assert (quarter.share, quarter.evaluations) == (0.25, 70)
    assert (quarter.values["objective"].mean, quarter.values["judge_passed"].mean) == (0.5, 0.0)
    assert half.agreement == pytest.approx(-0.4)
    assert "25%         0.5   -0.40      100" in as_text(done)


def test_a_failed_end_is_never_the_best():
    log = [*drawn(0, 0.9, math.nan, error="NaN"), *drawn(1, 0.1, 0.3, judged=1.0)]
    (half,) = replay(log).pruning
    assert math.isnan(half.values["objective"].mean)
    assert half.evaluations == 50


def test_what_was_pruned_or_branched_is_a_selection():
    whole = [*drawn(0, 0.9, 0.5), *drawn(1, 0.1, 0.9)]
    assert [c.last.id for c in chains(whole)] == ["b0", "b1"]
    assert chains(whole[:3]) == []
    twice = Continue("a0", 1.0, 7)
    branch = Trial("c", Prompt("p", "p"), 0, twice, 1.0, None, 0.5, Cost())
    assert chains([*whole, branch]) == []


@given(st.integers(2, 6), st.integers(0, 99))
def test_it_is_what_a_live_search_chooses(count, seed):
    parts = FakeGenerator(), FakeVerifier()
    everything = run(["a red circle"], *parts, SuccessiveHalving(count, 1.0, stops=(0.5, 1.0)),
                     seed=seed)  # fmt: skip
    for cut in replay(everything.trials).pruning:
        live = run(["a red circle"], *parts, seed=seed,
                   strategy=SuccessiveHalving(count, cut.share, stops=(0.5, 1.0)))  # fmt: skip
        (choice,) = live.choices.values()
        assert cut.values["objective"].mean == pytest.approx(choice.trial.objective)
        assert cut.evaluations == sum(t.cost.network_evaluations for t in live.trials)
