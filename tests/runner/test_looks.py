"""Two tiers: quick scores of all images, and diagnoses of the best ones once a search has ended."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tts_verifier import run
from tts_verifier.analysis.replay import replay_log
from tts_verifier.analysis.replay_output import replay_text
from tts_verifier.analysis.report import write_report
from tts_verifier.choice.summary import summarise
from tts_verifier.errors import InputError, RunError, UnsupportedError
from tts_verifier.shapes.verifiers import JudgeVerifier
from tts_verifier.strategies.adaptive import Adaptive
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.strategies.fk_steering import FKSteering
from tts_verifier.strategies.inpaint_reroll import InpaintReroll
from tts_verifier.strategies.search_over_paths import SearchOverPaths
from tts_verifier.strategies.seed_beam import SeedBeam
from tts_verifier.strategies.spectral import Spectral
from tts_verifier.strategies.successive_halving import SuccessiveHalving
from tts_verifier.strategies.zero_order import ZeroOrder
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Budget, Look, Trial, Verdict

RED = "a red circle"


class Contrary(FakeVerifier):
    """Diagnoses the opposite of its quick scores; what `fails` has no usable diagnosis."""

    def __init__(self, fails: Callable[[float], bool] = lambda quick: False) -> None:
        super().__init__()
        self.fails = fails

    def verify(self, images: Any, prompts: Any, *, detail: Any = "diagnose") -> list[Verdict]:
        return [
            self._contrary(verdict) if detail == "diagnose" else verdict
            for verdict in super().verify(images, prompts, detail=detail)
        ]

    def _contrary(self, verdict: Verdict) -> Verdict:
        failed = self.fails(verdict.scores["overall"])
        scores = {k: math.nan if failed else 1 - v for k, v in verdict.scores.items()}
        return Verdict(scores, verdict.heatmaps, verdict.boxes, verdict.text, "diagnose")


def shared_trace(verifier: FakeVerifier, batch_size: int = 4) -> FakeGenerator:
    generator = FakeGenerator(batch_size)
    verifier.trace = generator.trace
    return generator


def looks(trials: Sequence[Trial]) -> list[Trial]:
    return [t for t in trials if isinstance(t.proposal, Look)]


def quick(trials: Sequence[Trial]) -> list[float]:
    """The quick objectives, best first."""
    return sorted((t.objective for t in trials if not isinstance(t.proposal, Look)), reverse=True)


def test_all_images_are_scored_and_the_best_are_diagnosed_in_batches_across_prompts() -> None:
    verifier = FakeVerifier()
    generator = shared_trace(verifier)
    result = run(["a", "b"], generator, verifier, BestOfN(4), looks=2)
    assert " ".join(generator.trace) == "g4 l4 g4 l4 v4"
    for choice in result.choices.values():
        assert choice.trial is not None
        assert choice.trial.verdict is not None
        assert [t.verdict.detail for t in choice.order if t.verdict] == [
            "diagnose", "diagnose", "score", "score",
        ]  # fmt: skip
        assert sorted(choice.trial.verdict.heatmaps) == ["artifact", "misalignment"]


def test_the_choice_is_made_by_the_diagnoses_and_among_the_diagnosed() -> None:
    result = run([RED], FakeGenerator(), Contrary(), BestOfN(8), looks=3)
    values = quick(result.trials)
    (choice,) = result.choices.values()
    # Of the three best by their quick scores, the third has the best diagnosis. Of the other five,
    # with quick scores below, none is compared with it.
    assert [t.objective for t in choice.order] == [
        *(pytest.approx(1 - v) for v in reversed(values[:3])),
        *values[3:],
    ]


def test_an_image_without_a_usable_diagnosis_comes_after_those_with_one() -> None:
    values = quick(run([RED], FakeGenerator(), FakeVerifier(), BestOfN(6)).trials)
    best = max(t.scores["overall"] for t in _best(FakeVerifier(), 6))
    result = run([RED], FakeGenerator(), Contrary(lambda v: v == best), BestOfN(6), looks=2)
    (choice,) = result.choices.values()
    assert [t.objective for t in choice.order[:3]] == [
        pytest.approx(1 - values[1]),
        *values[::2][:2],
    ]
    failing = run([RED], FakeGenerator(), Contrary(lambda v: True), BestOfN(6), looks=2)
    (choice,) = failing.choices.values()
    assert [t.objective for t in choice.order] == values


def _best(verifier: FakeVerifier, n: int) -> list[Trial]:
    trials = run([RED], FakeGenerator(), verifier, BestOfN(n)).trials
    return [t for t in trials if t.objective == max(t.objective for t in trials)]


@pytest.mark.parametrize(
    "strategy",
    [
        BestOfN(4),
        Adaptive(BestOfN(8), {"overall": 0.6}),
        Adaptive(InpaintReroll(2, 2), {"overall": 0.9}),
        SuccessiveHalving(8),
        SeedBeam(4),
        ZeroOrder(3),
        SearchOverPaths(4, 2),
        FKSteering(4),
        Spectral(4, shape=(3, 1, 1)),
        InpaintReroll(3),
    ],
    ids=lambda s: type(s).__name__,
)
def test_it_serves_every_strategy(strategy: Any) -> None:
    once = run([RED], FakeGenerator(), FakeVerifier(), strategy, detail="score")
    result = run([RED], FakeGenerator(), FakeVerifier(), strategy, looks=2)
    assert [t.id for t in result.trials[: len(once.trials)]] == [t.id for t in once.trials]
    added = result.trials[len(once.trials) :]
    assert looks(added) == [*added]
    assert len(added) <= 2
    (choice,) = result.choices.values()
    assert len(looks(choice.order[:2])) == 2
    for trial in result.trials:
        wanted = "diagnose" if isinstance(trial.proposal, Look) else "score"
        assert trial.verdict is not None
        assert trial.verdict.detail == wanted
        assert trial.cost.verifier_calls == 1


def test_a_search_that_diagnosed_its_best_is_not_asked_for_it_twice() -> None:
    result = run([RED], FakeGenerator(size=64), FakeVerifier(), InpaintReroll(2, 1), looks=3)
    parents = [t.parent_id for t in looks(result.trials)]
    assert len(parents) == len(set(parents))


@pytest.mark.parametrize(
    ("budget", "drawn", "looked"),
    [
        (Budget(verifier_calls=6), 4, 2),
        (Budget(candidates=4), 4, 2),
        (Budget(network_evaluations=80), 4, 2),
        (Budget(seconds=1e-9), 4, 0),
    ],
)
def test_a_budget_keeps_calls_for_looks_and_nothing_else_limits_them(
    budget: Budget, drawn: int, looked: int
) -> None:
    result = run([RED], FakeGenerator(4), FakeVerifier(), BestOfN(8), looks=2, budget=budget)
    assert len(result.trials) - len(looks(result.trials)) == drawn
    assert len(looks(result.trials)) == looked
    (choice,) = result.choices.values()
    assert choice.trial is not None


class ScoresOnly(FakeVerifier):
    details = ("score",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"looks": -1}, "looks must be a number of images, 0 or more, got -1"),
        ({"looks": True}, "looks must be a number of images, 0 or more, got True"),
        ({"looks": 5}, "looks must be at most 4, as many images as are finished, got 5"),
        (
            {"looks": 3, "budget": Budget(candidates=2)},
            "looks must be at most 2, the candidates of the budget, got 3",
        ),
        (
            {"looks": 4, "budget": Budget(verifier_calls=4)},
            "looks must be less than 4, the verifier calls of the budget, got 4",
        ),
        (
            {"looks": 1, "detail": "diagnose"},
            "looks needs detail 'score', got 'diagnose', which diagnoses every image at once",
        ),
    ],
)
def test_looks_that_do_not_fit_a_run_are_refused(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run([RED], FakeGenerator(), FakeVerifier(), BestOfN(4), **options)


@pytest.mark.parametrize(
    ("strategy", "most"),
    [
        (BestOfN(4), 4),
        (Adaptive(BestOfN(3)), 3),
        (SuccessiveHalving(5), 5),
        (SeedBeam(8, 2, branches=3), 6),
        (FKSteering(7), 7),
    ],
)
def test_more_looks_than_images_are_refused(strategy: Any, most: int) -> None:
    with pytest.raises(InputError, match=f"at most {most}, as many images as are finished"):
        run([RED], FakeGenerator(), FakeVerifier(), strategy, looks=most + 1)


def test_fewer_images_than_looks_are_all_looked_at_where_nobody_knows_before() -> None:
    assert (
        len(looks(run([RED], FakeGenerator(), FakeVerifier(), ZeroOrder(1, 1), looks=9).trials))
        == 2
    )


@pytest.mark.parametrize(
    ("verifier", "strategy", "options", "message"),
    [
        (
            JudgeVerifier(),
            BestOfN(4),
            {"looks": 1},
            "needs a verifier with a quick score beside its diagnosis, JudgeVerifier has diagnose",
        ),
        (ScoresOnly(), BestOfN(4), {"looks": 1}, "ScoresOnly has score only. Leave out looks"),
        (
            ScoresOnly(),
            InpaintReroll(),
            {"detail": "score"},
            "InpaintReroll needs a verifier that diagnoses images, ScoresOnly gives scores only",
        ),
    ],
)
def test_a_verifier_without_the_detail_that_is_needed_is_refused(
    verifier: Any, strategy: Any, options: Any, message: str
) -> None:
    generator = FakeGenerator()
    with pytest.raises(UnsupportedError, match=message):
        run([RED], generator, verifier, strategy, **options)
    assert generator.trace == []


def test_the_log_says_how_each_candidate_was_verified_and_what_that_cost(tmp_path: Path) -> None:
    run([RED], FakeGenerator(), FakeVerifier(), BestOfN(4), looks=1, folder=tmp_path)
    rows = pd.read_parquet(tmp_path / "trials.parquet")
    assert list(rows.kind) == ["draw"] * 4 + ["look"]
    assert list(rows.detail) == ["score"] * 4 + ["diagnose"]
    assert list(rows.verifier_calls) == [1] * 5
    assert (rows.verify_seconds > 0).all()
    assert list(rows.chosen) == [False] * 4 + [True]
    assert list(rows.heatmap_artifact_path.notna()) == [False] * 4 + [True]
    assert rows.image_path[4] in list(rows.image_path[:4])


def test_a_continued_run_looks_at_what_it_had_not_looked_at(tmp_path: Path) -> None:
    def again(n: int, looks: int) -> list[str]:
        verifier = Contrary()
        generator = shared_trace(verifier)
        run([RED], generator, verifier, BestOfN(n), looks=looks, detail="score", folder=tmp_path)
        return generator.trace

    assert again(4, 0) == ["g4", "l4"]
    assert again(4, 1) == ["v1"]
    assert again(4, 1) == []
    assert again(4, 2) == ["v1"]
    first = run([RED], FakeGenerator(), Contrary(), BestOfN(4), looks=2, folder=tmp_path)
    assert len(first.trials) == 6
    # With more candidates others are the best. Looks of before count too, wherever they stand.
    assert again(8, 2)[:2] == ["g4", "l4"]
    result = run([RED], FakeGenerator(), Contrary(), BestOfN(8), looks=2, folder=tmp_path)
    rows = pd.read_parquet(tmp_path / "trials.parquet")
    assert sorted(rows.trial_id) == sorted(t.id for t in result.trials)
    (choice,) = result.choices.values()
    assert choice.trial is not None
    assert list(rows.trial_id[rows.chosen]) == [choice.trial.id]
    with pytest.raises(RunError, match="looks: 2 there, 1 here"):
        again(8, 1)


@pytest.mark.parametrize("calls", [1, 2, 3, 4])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path, calls: int) -> None:
    class Dies(Contrary):
        def verify(self, images: Any, prompts: Any, *, detail: Any = "diagnose") -> list[Verdict]:
            if len(self.trace) >= calls:
                raise KeyboardInterrupt
            return super().verify(images, prompts, detail=detail)

    prompts = ["a", "b", "c"]
    whole = run(prompts, FakeGenerator(4), Contrary(), BestOfN(4), looks=2)
    with pytest.raises(KeyboardInterrupt):
        run(prompts, FakeGenerator(4), Dies(), BestOfN(4), looks=2, folder=tmp_path)
    result = run(prompts, FakeGenerator(4), Contrary(), BestOfN(4), looks=2, folder=tmp_path)
    assert [t.id for t in result.trials] == [t.id for t in whole.trials]
    assert [t.objective for t in result.trials] == [t.objective for t in whole.trials]
    chosen = [c.trial.id for c in result.choices.values() if c.trial]
    assert chosen == [c.trial.id for c in whole.choices.values() if c.trial]


@pytest.mark.parametrize("logged", [False, True])
def test_first_draw_and_choice_are_compared_on_one_scale(tmp_path: Path, logged: bool) -> None:
    folder = tmp_path if logged else None
    result = run([RED], FakeGenerator(), Contrary(), BestOfN(4), looks=1, folder=folder)
    (row,) = result.summaries
    values = quick(result.trials)
    assert row.chosen is not None
    assert row.chosen.objective == pytest.approx(1 - values[0])
    assert row.comparable is not None
    assert row.comparable.objective == values[0]
    assert summarise([row]).objective_chosen == values[0]
    assert row.candidates == 4


def test_report_and_replay_know_two_tiers(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run(["a", "b"], FakeGenerator(), Contrary(), BestOfN(4), looks=1, folder=folder)
    (mean,) = {c.values[3].mean for c in replay_log(folder).curves if c.name == "objective"}
    best = [quick([t for t in result.trials if t.prompt.text == p])[0] for p in "ab"]
    assert mean == pytest.approx(sum(best) / 2)
    assert "2 looks or comparisons: the run chose by them" in replay_text(replay_log(folder))
    assert "left out" not in replay_text(replay_log(folder))
    page = tmp_path / "report.html"
    write_report([folder], page)
    assert "looked at in full" in page.read_text("utf-8")
