"""FK steering: weights from potentials, and resampling when they are uneven."""

from math import inf, nan

import numpy as np
import pytest
from histories import TASK, seed, trial

from tts_verifier.errors import InputError
from tts_verifier.runner import run
from tts_verifier.strategies.fk_steering import FKSteering, is_uneven, systematic_indices
from tts_verifier.testing import FakeGenerator, FakeVerifier, check_strategy
from tts_verifier.types import Continue, Draw

STOPS = (0.3, 0.6, 1.0)
ROOTS = [Draw(seed(i), 0.3) for i in range(4)]


def search(potential: str = "diff", strength: float = 10.0) -> FKSteering:
    return FKSteering(4, potential, strength=strength, stops=STOPS)


def on(parents: str, level: int) -> list[Continue]:
    pairs = enumerate(parents)
    return [Continue(p, STOPS[level], seed(i, f"particle{level}"), eta=0.5) for i, p in pairs]


def previews(*values: float) -> list:
    return [trial("abcd"[i], 0, p, v) for i, (p, v) in enumerate(zip(ROOTS, values, strict=True))]


EVEN = previews(0.5, 0.55, 0.5, 0.45)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], ROOTS),
        (EVEN, on("abcd", 1)),
        (previews(0.0, 0.0, 1.0, 0.0), on("cccc", 1)),
        (previews(nan, nan, nan, nan), on("abcd", 1)),
        (previews(0.1, nan, nan, nan), on("aaaa", 1)),
    ],
    ids=["particles", "even: as they are", "one outweighs", "all unusable", "one usable"],
)
def test_particles_are_resampled_where_their_weights_are_uneven(
    history: list, expected: list
) -> None:
    assert search().propose(TASK, history) == expected


def test_weights_grow_along_a_lineage_by_the_potential() -> None:
    weights = {}
    carried = zip("efgh", on("abcd", 1), (0.8, 0.1, 0.5, nan), strict=True)
    history = [*EVEN, *(trial(name, 1, p, v) for name, p, v in carried)]
    for potential in ("diff", "max", "add"):
        found = search(potential, 1.0).log_weights(history)
        weights[potential] = [found[name] for name in "efgh"]
    assert weights["diff"] == pytest.approx([0.8, 0.1, 0.5, -inf])
    assert weights["max"] == pytest.approx([0.5 + 0.8, 0.55 + 0.55, 0.5 + 0.5, -inf])
    assert weights["add"] == pytest.approx([0.5 + 1.3, 0.55 + 0.65, 0.5 + 1.0, -inf])


def test_weights_start_anew_after_resampling() -> None:
    history = previews(0.0, 0.0, 1.0, 0.0)
    history += [trial("efgh"[i], 1, p, 0.9) for i, p in enumerate(on("cccc", 1))]
    assert search().log_weights(history)["e"] == pytest.approx(10 * (0.9 - 1.0))
    assert search().propose(TASK, history) == on("efgh", 2)


def test_a_funnel_keeps_fewer_particles_from_stop_to_stop() -> None:
    search = FKSteering(4, stops=STOPS, keep=0.5)
    assert search.most == 1
    first = search.propose(TASK, previews(0.0, 0.0, 1.0, 0.0))
    assert first == on("cc", 1)
    even = search.propose(TASK, EVEN)
    assert len({p.parent for p in even}) == 2
    history = [*EVEN, *(trial("ef"[i], 1, p, 0.5 - i) for i, p in enumerate(even))]
    assert search.propose(TASK, history) == on("e", 2)
    result = run(["x"], FakeGenerator(steps=10), FakeVerifier(), FKSteering(8, keep=0.5))
    counts = [sum(t.round == number for t in result.trials) for number in range(5)]
    assert counts == [8, 4, 2, 1, 1]
    check_strategy(search)


def test_the_strength_grows_with_progress() -> None:
    constant, growing = FKSteering(4, stops=STOPS), FKSteering(4, stops=STOPS, ramp=1.0)
    assert constant.log_weights(EVEN)["a"] == pytest.approx(5.0)
    assert growing.log_weights(EVEN)["a"] == pytest.approx(0.3 * 5.0)


def test_it_is_over_at_the_last_stop() -> None:
    history = [*EVEN, trial("e", 1, on("a", 1)[0], 0.5), trial("f", 2, on("e", 2)[0], 0.5)]
    assert search().propose(TASK, history) == []


def test_a_particle_that_failed_is_replaced() -> None:
    history = [*EVEN[:3], trial("d", 0, ROOTS[3], nan, image=None, error="x")]
    proposals = search().propose(TASK, history)
    assert len(proposals) == 4
    assert {p.parent for p in proposals} == set("abc")
    lost = [trial("a", 0, ROOTS[0], nan, image=None, error="x")]
    assert search().propose(TASK, lost) == []


def test_systematic_resampling_keeps_to_the_shares() -> None:
    logs = np.log([0.5, 0.25, 0.25])
    assert systematic_indices(logs, 4, start=0.5) == [0, 0, 1, 2]
    assert systematic_indices(np.array([-2000.0, -1000.0]), 3, start=0.9) == [1, 1, 1]
    assert not is_uneven(np.array([-1e9, -1e9]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 1}, "n must be an integer of at least 2, got 1"),
        ({"potential": "min"}, "potential must be one of .* got 'min'"),
        ({"strength": 0}, "strength must be finite and positive, got 0"),
        ({"stops": (1.0,)}, "stops must be at least two fractions"),
        ({"keep": 0}, r"keep must be in \(0, 1\], got 0"),
        ({"ramp": -1}, "ramp must be finite and not negative, got -1"),
        ({"eta": 0}, r"eta must be in \(0, 1\], got 0"),
    ],
)
def test_unusable_arguments_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FKSteering(**values)


@pytest.mark.parametrize("potential", ["diff", "max", "add"])
def test_it_conforms(potential: str) -> None:
    check_strategy(search(potential))


def test_a_run_costs_n_draws() -> None:
    result = run(["x"], FakeGenerator(steps=10), FakeVerifier(), search())
    assert sum(t.cost.network_evaluations for t in result.trials) == 4 * 20
    assert sum(t.cost.verifier_calls for t in result.trials) == 12
