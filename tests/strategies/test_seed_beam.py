"""Beam over seeds: the better previews are branched, and no root takes all places."""

from dataclasses import replace
from math import nan

import pytest
from histories import TASK, seed, trial

from tts_verifier.errors import InputError
from tts_verifier.runner import run
from tts_verifier.strategies.seed_beam import SeedBeam, best_of_roots
from tts_verifier.testing import FakeGenerator, FakeVerifier, check_strategy
from tts_verifier.types import Continue, Draw

SEARCH = SeedBeam(3, 2, branches=2)


def branches(*parents: str, level: int, until: float) -> list[Continue]:
    fresh = [seed(i, f"branch{level}") for i in (0, 1)]
    return [Continue(p, until, s, renoise=0.1) for p in parents for s in fresh]


ROOTS = [Draw(seed(i), 0.4) for i in range(3)]
PREVIEWS = [trial(n, 0, p, v) for n, p, v in zip("abc", ROOTS, (0.2, 0.6, 0.4), strict=True)]
FIRST = branches("b", "c", level=1, until=0.7)
CARRIED = [
    *PREVIEWS,
    *(trial(n, 1, p, v) for n, p, v in zip("defg", FIRST, (0.9, 0.8, nan, 0.1), strict=True)),
]
FINALS = branches("d", "g", level=2, until=1.0)
DONE = [*CARRIED, *(trial(f"h{i}", 2, p, 0.9) for i, p in enumerate(FINALS))]


@pytest.mark.parametrize(
    ("history", "expected"),
    [([], ROOTS), (PREVIEWS, FIRST), (CARRIED, FINALS), (DONE, [])],
    ids=["previews", "the best two", "the best of each seed", "over"],
)
def test_the_better_previews_are_carried_on(history: list, expected: list) -> None:
    assert SEARCH.propose(TASK, history) == expected


def test_places_that_no_other_seed_can_take_are_filled() -> None:
    lines = [t for t in CARRIED if t.id in "de"]
    assert [t.id for t in best_of_roots(lines, 2, CARRIED)] == ["d", "e"]


def test_a_preview_that_failed_is_not_carried_on() -> None:
    history = [replace(PREVIEWS[1], image=None, error="no image"), PREVIEWS[2]]
    assert SEARCH.propose(TASK, history) == branches("c", level=1, until=0.7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n must be a positive integer, got 0"),
        ({"keep": 9}, "keep must be at most n, got 9 of 8"),
        ({"branches": 0}, "branches must be a positive integer, got 0"),
        ({"stops": (0.4, 0.9)}, r"stops must be at least two fractions .* got \(0.4, 0.9\)"),
        ({"stops": (0.7, 0.4, 1)}, "stops must be at least two fractions"),
        ({"stops": (1.0,)}, "stops must be at least two fractions"),
        ({"renoise": 0}, r"renoise must be in \(0, 1\), got 0"),
    ],
)
def test_unusable_arguments_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SeedBeam(**values)


def test_it_conforms() -> None:
    check_strategy(SEARCH)


def test_a_run_calls_the_verifier_as_often_as_is_said() -> None:
    result = run(["x"], FakeGenerator(), FakeVerifier(), SeedBeam(8, 2, branches=2))
    assert [t.round for t in result.trials].count(0) == 8
    assert sum(t.cost.verifier_calls for t in result.trials) == 8 + 2 * 4
