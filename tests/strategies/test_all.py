"""Every registered strategy implements the interface; best-of-N proposes what is missing."""

import pytest
from histories import TASK, seed, trial

from tts_verifier.errors import InputError
from tts_verifier.interfaces import Strategy
from tts_verifier.registry import BUILT_IN, builder
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.types import Draw


@pytest.mark.parametrize("name", BUILT_IN["strategy"])
def test_every_registered_strategy_implements_the_interface(name: str) -> None:
    needed = {
        "adaptive": {"strategy": {"name": "best_of_n"}},
        "reflection": {"rewriter": {"name": "shapes"}},
    }
    given = needed.get(name, {})
    assert isinstance(builder("strategy", name)(**given), Strategy)


def test_best_of_n_draws_all_at_once_and_stops() -> None:
    draws = [Draw(seed(i)) for i in range(3)]
    assert BestOfN(3).propose(TASK, []) == draws
    history = [trial(str(i), 0, d, 0.5) for i, d in enumerate(draws)]
    assert BestOfN(3).propose(TASK, history) == []


def test_best_of_n_raised_draws_only_what_is_new() -> None:
    history = [trial(str(i), 0, Draw(seed(i)), 0.5) for i in range(3)]
    assert BestOfN(5).propose(TASK, history) == [Draw(seed(3)), Draw(seed(4))]


@pytest.mark.parametrize("n", [0, -1, 2.0, True, "8"])
def test_best_of_n_needs_a_positive_number(n: object) -> None:
    with pytest.raises(InputError, match=f"n must be a positive integer, got {n!r}"):
        BestOfN(n)  # type: ignore[arg-type]
