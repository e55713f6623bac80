"""Successive halving: the better half is continued, unless previews do not predict."""

from math import nan

import pytest
from histories import TASK, seed, trial

from tts_verifier.errors import InputError
from tts_verifier.runner import run
from tts_verifier.strategies.successive_halving import SuccessiveHalving
from tts_verifier.testing import FakeGenerator, FakeVerifier, check_strategy
from tts_verifier.types import Continue, Draw

STOPS = (0.3, 0.6, 1.0)
SEARCH = SuccessiveHalving(8)
ROOTS = [Draw(seed(i), 0.3) for i in range(8)]
PREVIEWS = [trial("abcdefgh"[i], 0, p, i / 10) for i, p in enumerate(ROOTS)]


def on(parents: str, level: int) -> list[Continue]:
    return [Continue(p, STOPS[level], seed(0, f"carry{level}")) for p in parents]


def continued(*values: float) -> list:
    """Returns the previews, and the four best of them continued as i, j, k and l."""
    pairs = zip("ijkl", on("hgfe", 1), values, strict=True)
    return [*PREVIEWS, *(trial(name, 1, p, v) for name, p, v in pairs)]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], ROOTS),
        (PREVIEWS, on("hgfe", 1)),
        (continued(0.9, 0.7, 0.8, 0.1), on("ik", 2)),
        (continued(0.1, 0.7, 0.8, 0.9), on("ijkl", 2)),
        (continued(0.1, 0.7, 0.8, nan), on("kj", 2)),
        ([*continued(0.9, 0.7, 0.8, 0.1), trial("m", 2, on("i", 2)[0], 0.9)], []),
    ],
    ids=["previews", "half", "half again", "order reversed: all", "too few to tell", "over"],
)
def test_the_better_half_goes_on(history: list, expected: list) -> None:
    assert SEARCH.propose(TASK, history) == expected


def test_a_share_for_each_stop() -> None:
    search = SuccessiveHalving(8, keep=[0.25, 0.5], stops=STOPS, trust=-1.0)
    assert search.propose(TASK, PREVIEWS) == on("hg", 1)
    history = [*PREVIEWS, *(trial("ij"[i], 1, p, i) for i, p in enumerate(on("hg", 1)))]
    assert search.propose(TASK, history) == on("j", 2)


def test_one_that_trusts_any_order_prunes_regardless() -> None:
    search = SuccessiveHalving(8, trust=-1.0)
    assert search.propose(TASK, continued(0.1, 0.7, 0.8, 0.9)) == on("lk", 2)


def test_a_spared_share_comes_from_the_worse_ones() -> None:
    parents = [p.parent for p in SuccessiveHalving(8, spare=0.5).propose(TASK, PREVIEWS)]
    assert parents[:2] == ["h", "g"]
    assert len(set(parents)) == 4
    assert set(parents[2:]) <= set("abcdef")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n must be a positive integer, got 0"),
        (
            {"keep": [0.5]},
            r"keep must be one share, or one for each stop but the last, got \[0.5\]",
        ),
        ({"keep": [0.5, 2]}, r"keep must be in \(0, 1\], got 2"),
        ({"keep": 0.0}, r"keep must be in \(0, 1\], got 0.0"),
        ({"stops": (0.5,)}, "stops must be at least two fractions"),
        ({"spare": 1.0}, r"spare must be in \[0, 1\), got 1.0"),
        ({"trust": -2}, r"trust must be in \[-1, 1\], got -2"),
    ],
)
def test_unusable_arguments_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SuccessiveHalving(**values)


def test_it_conforms() -> None:
    check_strategy(SEARCH)


def test_a_run_of_sixteen_costs_fewer_than_nine_draws() -> None:
    search = SuccessiveHalving(16, trust=-1.0)
    result = run(["x"], FakeGenerator(steps=10), FakeVerifier(), search)
    whole = 20
    draws = sum(t.cost.network_evaluations for t in result.trials) / whole
    assert draws == pytest.approx(8.8)
    assert len(result.trials) == 28
