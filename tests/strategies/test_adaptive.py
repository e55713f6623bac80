"""Adaptive stopping: when it ends a search, and that the inner strategy runs as if alone."""

from dataclasses import replace
from math import nan

import pytest
from histories import TASK, seed, trial

from tts_verifier.choice.objective import Objective
from tts_verifier.errors import InputError
from tts_verifier.runner import run
from tts_verifier.strategies.adaptive import Adaptive, expected_improvement
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.strategies.seed_beam import SeedBeam
from tts_verifier.strategies.zero_order import ZeroOrder
from tts_verifier.testing import FakeGenerator, FakeVerifier, check_strategy
from tts_verifier.types import Continue, Draw, Look

DRAWS = [Draw(seed(i)) for i in range(6)]


def trials(*values: float) -> list:
    return [trial(str(i), i // 2, DRAWS[i], v) for i, v in enumerate(values)]


def test_it_hands_out_a_few_at_a_time() -> None:
    search = Adaptive(BestOfN(5))
    assert search.propose(TASK, []) == DRAWS[:2]
    assert search.propose(TASK, trials(0.1, 0.2)) == DRAWS[2:4]
    assert search.propose(TASK, trials(0.1, 0.2, 0.3, 0.4)) == DRAWS[4:5]
    assert search.propose(TASK, trials(0.1, 0.2, 0.3, 0.4, 0.5)) == []


def test_it_stops_when_every_score_passes() -> None:
    search = Adaptive(BestOfN(5), {"alignment": 0.9, "beauty": 0.5})
    good = trial("0", 0, DRAWS[0], 0.8)
    for scores, more in (
        ({"alignment": 0.9, "beauty": 0.6}, []),
        ({"alignment": 0.9, "beauty": 0.4}, DRAWS[1:3]),
        ({"alignment": 0.9, "beauty": nan}, DRAWS[1:3]),
        ({"alignment": 0.9}, DRAWS[1:3]),
    ):
        good.scores.clear()
        good.scores.update(scores)
        assert search.propose(TASK, [good]) == more


def test_a_look_neither_ends_the_search_nor_counts_as_an_image() -> None:
    looked = trial("l", 1, Look("0"), 0.9)
    looked.scores.update(a=1.0)
    drawn = trial("0", 0, DRAWS[0], 0.8)
    assert Adaptive(BestOfN(3), {"a": 0.5}).propose(TASK, [drawn, looked]) == DRAWS[1:3]
    assert Adaptive(BestOfN(6), cost=0.9).propose(TASK, [*trials(0.1, 0.1, 0.1), looked]) != []


def test_an_unfinished_image_never_ends_the_search() -> None:
    search = Adaptive(SeedBeam(2, 1), {"a": 0.5})
    preview = trial("p", 0, Draw(seed(0), 0.4), 0.9)
    preview.scores.update(a=1.0)
    assert search.propose(TASK, [preview]) == [Draw(seed(1), 0.4)]


@pytest.mark.parametrize(
    ("values", "stops"),
    [((0.5, 0.5, 0.5, 0.5), True), ((0.1, 0.9, 0.3, 0.6), False), ((0.1, 0.9, nan, nan), False)],
    ids=["all alike", "spread", "too few to tell"],
)
def test_it_stops_when_another_is_not_worth_its_cost(values: tuple, stops: bool) -> None:
    proposals = Adaptive(BestOfN(6), cost=0.01).propose(TASK, trials(*values))
    assert (proposals == []) is stops


def test_expected_improvement_is_that_of_the_normal_fit() -> None:
    assert expected_improvement([0.0, 1.0, 2.0]) == pytest.approx(0.0833, abs=1e-4)
    assert expected_improvement([0.5, 0.5]) == 0


def test_an_unsure_score_passes_only_by_a_standard_deviation() -> None:
    search = Adaptive(BestOfN(5), {"a": 0.5})
    for sigma, more in ((0.1, []), (0.2, DRAWS[1:3]), (nan, []), (1e200, DRAWS[1:3])):
        unsure = trial("0", 0, DRAWS[0], 0.6, scores={"a": 0.6, "a_sigma": sigma})
        assert search.propose(TASK, [unsure]) == more
    # No deviation is negative, and none lifts a score over a threshold.
    below = trial("0", 0, DRAWS[0], 0.4, scores={"a": 0.4, "a_sigma": -0.2})
    assert search.propose(TASK, [below]) == DRAWS[1:3]


def test_expected_improvement_leaves_out_the_noise_of_the_verdicts() -> None:
    values = [0.0, 1.0, 2.0]
    assert expected_improvement(values, [0.0] * 3) == expected_improvement(values)
    assert expected_improvement(values, [1.0] * 3) == 0
    # Of the variance 1, a half is error: the best is 1 + 0.5, the spread the root of 0.5.
    assert expected_improvement(values, [0.5**0.5] * 3) == pytest.approx(0.0998, abs=1e-4)
    # A high score that is far from certain counts for less than one that is.
    certain = expected_improvement(values, [0.1, 0.1, 0.1])
    assert expected_improvement(values, [0.1, 0.1, 0.8]) > certain


def test_a_search_whose_spread_is_noise_stops() -> None:
    task = replace(TASK, objective=Objective({"a": 1.0}))
    noisy, sure = (
        [
            trial(str(i), 0, DRAWS[i], v, scores={"a": v, "a_sigma": sigma})
            for i, v in enumerate((0.1, 0.9, 0.3, 0.6))
        ]
        for sigma in (0.4, 0.01)
    )
    search = Adaptive(BestOfN(6), cost=0.01)
    assert search.propose(task, noisy) == []
    assert search.propose(task, sure) != []
    assert search.propose(replace(TASK, objective=lambda scores: 0.0), noisy) != []


def test_a_threshold_may_lie_outside_of_0_and_1() -> None:
    search = Adaptive(BestOfN(6), {"pick": 21.5, "imagereward": -0.5})
    below, above = (
        [trial("0", 0, DRAWS[0], 0.5, scores={"pick": pick, "imagereward": -0.2})]
        for pick in (21.4, 21.6)
    )
    assert search.propose(TASK, below) != []
    assert search.propose(TASK, above) == []


@pytest.mark.parametrize("inner", [BestOfN(5), ZeroOrder(3, 2), SeedBeam(5, 2)])
def test_the_inner_search_is_the_same_as_alone(inner: object) -> None:
    alone = run(["x"], FakeGenerator(), FakeVerifier(), inner)
    wrapped = run(["x"], FakeGenerator(), FakeVerifier(), Adaptive(inner))
    assert [t.id for t in wrapped.trials] == [t.id for t in alone.trials]


def test_a_run_stops_early() -> None:
    search = Adaptive({"name": "best_of_n", "n": 50}, {"overall": 0.0}, at_once=3)
    assert len(run(["x"], FakeGenerator(), FakeVerifier(), search).trials) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": {"n": 3}}, "strategy needs a 'name' beside its arguments"),
        ({"strategy": {"name": "best_of_n", "m": 3}}, "strategy 'best_of_n' has no argument 'm'"),
        ({"strategy": 3}, "strategy must be a strategy, such as .*, or a table, got 3"),
        ({"thresholds": {"a": nan}}, "thresholds.a must be a finite number, got nan"),
        ({"thresholds": {"a": "2"}}, "thresholds.a must be a finite number, got '2'"),
        ({"cost": -1}, "cost must be finite, not negative, got -1"),
        ({"least": 2}, "least must be an integer of at least 3, got 2"),
        ({"at_once": 0}, "at_once must be a positive integer, got 0"),
    ],
)
def test_unusable_arguments_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Adaptive(**{"strategy": BestOfN(2), **values})


def test_it_needs_what_the_inner_one_needs() -> None:
    assert Adaptive(SeedBeam()).needs == {Draw, Continue}
    check_strategy(Adaptive(SeedBeam(), cost=0.001))
