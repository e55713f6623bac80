"""Search over paths: a step back, a longer step forward, and the best survive."""

from math import nan

import pytest
from histories import TASK, seed, trial

from tts_verifier.errors import InputError
from tts_verifier.runner import run
from tts_verifier.strategies.search_over_paths import SearchOverPaths
from tts_verifier.testing import FakeGenerator, FakeVerifier, check_strategy
from tts_verifier.types import Continue, Draw

SEARCH = SearchOverPaths(4, 2, start=0.4, forward=0.4, back=0.1)
ROOTS = [Draw(seed(i), 0.4) for i in range(4)]
VALUES = (0.2, 0.6, nan, 0.4)
PREVIEWS = [trial(n, 0, p, v) for n, p, v in zip("abcd", ROOTS, VALUES, strict=True)]


def paths(*parents: str, level: int, until: float) -> list[Continue]:
    fresh = [seed(i, f"path{level}") for i in (0, 1)]
    return [Continue(p, until, s, renoise=0.1) for p in parents for s in fresh]


FIRST = paths("b", "d", level=1, until=0.7)
CARRIED = [trial(n, 1, p, v) for n, p, v in zip("efgh", FIRST, (0.9, 0.8, nan, 0.1), strict=True)]
FINALS = paths("e", "f", level=2, until=1.0)
DONE = [trial(f"i{i}", 2, p, 0.9) for i, p in enumerate(FINALS)]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], ROOTS),
        (PREVIEWS, FIRST),
        ([*PREVIEWS, *CARRIED], FINALS),
        ([*PREVIEWS, *CARRIED, *DONE], []),
    ],
    ids=["previews", "paths", "to the end", "over"],
)
def test_the_best_paths_are_carried_on(history: list, expected: list) -> None:
    assert SEARCH.propose(TASK, history) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n must be a positive integer, got 0"),
        ({"keep": 5}, "keep must be at most n, got 5 of 4"),
        ({"start": 1}, r"start must be in \(0, 1\), got 1"),
        ({"forward": 0}, r"forward must be in \(0, 1\), got 0"),
        ({"back": 0.3}, "back must be above 0, below forward and at most start, got 0.3"),
    ],
)
def test_unusable_arguments_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchOverPaths(**values)


def test_it_conforms() -> None:
    check_strategy(SEARCH)


def test_a_run_ends_where_it_is_said() -> None:
    result = run(["x"], FakeGenerator(steps=10), FakeVerifier(), SearchOverPaths())
    assert sorted({t.progress for t in result.trials}) == [0.4, 0.6, 0.8, 1.0]
    assert sum(t.cost.verifier_calls for t in result.trials) == 16
