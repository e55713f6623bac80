"""Spectral evolution: low bands follow the best, high bands stay the same."""

from math import nan

import numpy as np
import pytest
from histories import TASK, seed, trial

from tts_verifier.errors import InputError
from tts_verifier.runner import run
from tts_verifier.strategies.spectral import Spectral
from tts_verifier.testing import FakeGenerator, FakeVerifier, check_strategy
from tts_verifier.types import Draw, LowBand

SEARCH = Spectral(6, 2, shape=(3, 2, 2), level=1)


def band(value: float) -> Draw:
    return Draw(seed(0), noise=LowBand((value,) * 12, 1))


def bands(proposals: list) -> np.ndarray:
    return np.array([p.noise.coefficients for p in proposals])


def test_the_first_population_has_the_seeds_own_noise_and_normal_low_bands() -> None:
    own, *others = SEARCH.propose(TASK, [])
    assert own == Draw(seed(0))
    assert len(others) == 5
    assert {p.seed for p in others} == {seed(0)}
    assert np.linalg.norm(bands(others), axis=1) == pytest.approx(np.full(5, 12**0.5))
    assert len({p.noise for p in others}) == 5


def test_the_next_population_follows_the_elite() -> None:
    values = [(1.0, 0.9), (1.1, 0.8), (-1.0, 0.1), (-1.1, 0.2), (-1.0, nan)]
    history = [trial(str(i), 0, band(c), v) for i, (c, v) in enumerate(values)]
    found = bands(SEARCH.propose(TASK, history))
    assert found.shape == (6, 12)
    assert found.min() > 0
    assert SEARCH.propose(TASK, [*history, trial("x", 1, band(0.5), 0.5)]) == []


def test_without_an_elite_it_draws_as_before() -> None:
    history = [trial("0", 0, Draw(seed(0)), 0.9), trial("1", 0, band(9.0), nan)]
    found = bands(SEARCH.propose(TASK, history))
    assert abs(found.mean()) < 0.6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"population": 2}, "population must be an integer of at least 3, got 2"),
        ({"rounds": 0}, "rounds must be a positive integer, got 0"),
        ({"elite": 4}, "elite must be below population, got 4 of 4"),
        ({"elite": 1}, "elite must be an integer of at least 2, got 1"),
        ({"shape": (4, 4)}, r"shape must be \(channels, height, width\), got \(4, 4\)"),
        ({"shape": (4, 0, 4)}, "shape must be a positive integer, got 0"),
        ({"level": 0}, "level must be a positive integer, got 0"),
    ],
)
def test_unusable_arguments_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Spectral(**values)


def test_it_conforms() -> None:
    check_strategy(SEARCH)


def test_a_run_costs_population_times_rounds() -> None:
    result = run(["x"], FakeGenerator(), FakeVerifier(), SEARCH)
    assert sum(t.cost.verifier_calls for t in result.trials) == 12
    assert result.trials[0].proposal.noise is None
