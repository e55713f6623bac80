"""What makes two runs the same run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tts_verifier import BestOfN, Objective
from tts_verifier.errors import InputError, RunError, UnsupportedError
from tts_verifier.interfaces import Strategy
from tts_verifier.runner import run
from tts_verifier.runner.setup import RunSetup
from tts_verifier.strategies.adaptive import Adaptive
from tts_verifier.strategies.seed_beam import SeedBeam
from tts_verifier.strategies.spectral import Spectral
from tts_verifier.strategies.zero_order import ZeroOrder
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Budget, Continue, Draw, Job, Sample


def test_every_argument_of_a_strategy_is_noted_nested_ones_too() -> None:
    strategy = Adaptive(SeedBeam(stops=(0.5, 1.0)), thresholds={"score": 0.9})
    about = RunSetup(FakeGenerator(), FakeVerifier(), strategy).about([])["strategy"]
    assert about["class"] == "Adaptive"
    assert about["thresholds"] == {"score": 0.9}
    assert about["strategy"]["class"] == "SeedBeam"
    assert about["strategy"]["stops"] == [0.5, 1.0]


def test_a_folder_of_other_stops_is_another_run(tmp_path: Path) -> None:
    for stops in ((0.5, 1.0), (0.5, 1.0)):
        run(["a"], FakeGenerator(), FakeVerifier(), SeedBeam(stops=stops), folder=tmp_path)
    with pytest.raises(RunError, match="stops"):
        run(["a"], FakeGenerator(), FakeVerifier(), SeedBeam(stops=(0.4, 1.0)), folder=tmp_path)


@pytest.mark.parametrize(
    ("strategy", "rule"),
    [
        (
            ZeroOrder(),
            "ZeroOrder needs a generator that can start from noise near a parent's, Starts",
        ),
        (
            Spectral(),
            "Spectral needs a generator that can start from noise with a given low band, Starts",
        ),
    ],
)
def test_noise_that_a_generator_cannot_be_given_is_refused_before_anything_is_generated(
    strategy: Strategy, rule: str
) -> None:
    class StartsFromAPicture(FakeGenerator):
        supports: frozenset[type] = frozenset({Draw})

        def generate(self, jobs: Sequence[Job]) -> list[Sample]:
            raise AssertionError("drawn")

    with pytest.raises(UnsupportedError, match=rule):
        run(["a"], StartsFromAPicture(), FakeVerifier(), strategy)


def test_a_generator_may_say_why_it_cannot() -> None:
    class DrawsOnly(FakeGenerator):
        supports: frozenset[type] = frozenset({Draw})
        lacks: Mapping[type, str] = {Continue: "PNDMScheduler cannot be resumed"}

    message = "can continue, DrawsOnly cannot: PNDMScheduler cannot be resumed. Choose another"
    with pytest.raises(UnsupportedError, match=message):
        run(["a"], DrawsOnly(), FakeVerifier(), SeedBeam())


def test_a_run_climbs_the_verifiers_own_objective_unless_it_is_given_one() -> None:
    class Blueness(FakeVerifier):
        objective = Objective({"plausibility": 1.0})

    (own,) = run(["a"], FakeGenerator(), Blueness(), BestOfN(1)).trials
    assert own.objective == own.scores["plausibility"]
    red = Objective({"semantic_alignment": 1.0})
    (given,) = run(["a"], FakeGenerator(), Blueness(), BestOfN(1), objective=red).trials
    assert given.objective == given.scores["semantic_alignment"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge": "shapes"}, "The judge must be an object with verify and settings, got 'shapes'"),
        ({"judge": FakeVerifier}, "The judge must be an object with verify"),
        ({"budget": 3}, r"budget must be a Budget, such as Budget\(candidates=8\), got 3"),
        ({"budget": Budget(candidates="3")}, "Every limit of a budget must be positive"),
        ({"budget": Budget(seconds=float("nan"))}, "Every limit of a budget must be positive"),
        ({"overlap": "no"}, "overlap must be true, false or None, got 'no'"),
    ],
)
def test_an_option_of_another_kind_is_refused_before_anything_is_generated(
    options: dict[str, Any], message: str
) -> None:
    class Untouched(FakeGenerator):
        def generate(self, jobs: Sequence[Job]) -> list[Sample]:
            raise AssertionError("something was generated")

    with pytest.raises(InputError, match=message):
        run(["a cat"], Untouched(), FakeVerifier(), BestOfN(2), **options)


@pytest.mark.parametrize("seed", ["1", 1.0, None, True])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(InputError, match=f"seed must be a whole number, got {seed!r}"):
        run(["a cat"], FakeGenerator(), FakeVerifier(), BestOfN(2), seed=seed)


def test_an_option_that_is_misspelt_is_named() -> None:
    with pytest.raises(InputError, match=r"run does not take look\. Did you mean 'looks'"):
        run(["a cat"], FakeGenerator(), FakeVerifier(), BestOfN(2), look=2)  # type: ignore[call-arg]
