"""Zero-order search: the pivot moves to a better candidate, else the radius shrinks."""

from math import nan

import pytest
from histories import TASK, seed, trial

from tts_verifier.errors import InputError
from tts_verifier.runner import run
from tts_verifier.strategies.zero_order import ZeroOrder
from tts_verifier.testing import FakeGenerator, FakeVerifier, check_strategy
from tts_verifier.types import Draw, Near

SEARCH = ZeroOrder(2, 2, radius=0.5, shrink=0.5)
PIVOT = [trial("p", 0, Draw(seed(0)), 0.5)]
NEAR_P = [Draw(seed(i), noise=Near("p", 0.5)) for i in (1, 2)]


def first(*values: float) -> list:
    return [
        *PIVOT,
        *(trial(f"q{i}", 1, p, v) for i, (p, v) in enumerate(zip(NEAR_P, values, strict=True))),
    ]


def second(parent: str, radius: float) -> list[Draw]:
    return [Draw(seed(i), noise=Near(parent, radius)) for i in (3, 4)]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], [Draw(seed(0))]),
        (PIVOT, NEAR_P),
        (first(0.4, 0.7), second("q1", 0.5)),
        (first(0.4, 0.3), second("p", 0.25)),
        (first(nan, 0.5), second("p", 0.25)),
        ([*first(0.4, 0.7), trial("r", 2, second("q1", 0.5)[0], 0.6)], []),
    ],
    ids=["pivot", "near it", "near the new best", "no gain", "an equal is no gain", "over"],
)
def test_the_pivot_moves_or_the_radius_shrinks(history: list, expected: list) -> None:
    assert SEARCH.propose(TASK, history) == expected


def test_without_a_usable_score_it_draws_from_fresh_noise() -> None:
    history = [trial("p", 0, Draw(seed(0)), nan)]
    assert SEARCH.propose(TASK, history) == [Draw(seed(1)), Draw(seed(2))]
    found = [*history, trial("q", 1, Draw(seed(1)), 0.2), trial("r", 1, Draw(seed(2)), nan)]
    assert SEARCH.propose(TASK, found) == second("q", 0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"neighbours": 0}, "neighbours must be a positive integer, got 0"),
        ({"rounds": 1.5}, "rounds must be a positive integer, got 1.5"),
        ({"radius": 1.1}, r"radius must be in \(0, 1\], got 1.1"),
        ({"shrink": nan}, r"shrink must be in \(0, 1\], got nan"),
    ],
)
def test_unusable_arguments_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ZeroOrder(**values)


def test_it_conforms() -> None:
    check_strategy(SEARCH)


def test_a_run_costs_what_is_said() -> None:
    result = run(["x"], FakeGenerator(), FakeVerifier(), ZeroOrder(3, 2))
    assert [t.round for t in result.trials] == [0, 1, 1, 1, 2, 2, 2]
    assert sum(t.cost.verifier_calls for t in result.trials) == 7
