"""Ties: a run compares its best images in pairs, in both orders, and goes on where it stopped."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from html_pages import whole
from PIL import Image

from tts_verifier import run
from tts_verifier.analysis.replay import replay_log
from tts_verifier.analysis.report import write_report
from tts_verifier.cli.run import run_command
from tts_verifier.errors import InputError, RecipeError, RunError
from tts_verifier.log import read_trials
from tts_verifier.recipe import load_recipe
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeComparer, FakeGenerator, FakeVerifier
from tts_verifier.types import Budget, Compare, Trial, Verdict

EVERYTHING = {"ties": 3, "near": 9.0}


def blue_of(trial: Trial) -> float:
    return sum(trial.image.load().resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))[2:])


def compared(trials) -> list[Trial]:
    return [t for t in trials if isinstance(t.proposal, Compare)]


def test_the_best_are_compared_and_the_preferred_one_is_chosen() -> None:
    comparer = FakeComparer()
    result = run(["a", "b"], FakeGenerator(), FakeVerifier(), BestOfN(5), comparer=comparer,
                 **EVERYTHING)  # fmt: skip
    assert sum(int(call[1:]) for call in comparer.trace) == 2 * 2 * 3
    for choice in result.choices.values():
        top = sorted(choice.order, key=lambda t: -t.objective)[:3]
        assert choice.trial.id == max(top, key=blue_of).id
        assert [t.id for t in choice.order[3:]] == [
            t.id for t in sorted(choice.order, key=lambda t: -t.objective)[3:]
        ]
    summary = result.summaries[0]
    assert (summary.candidates, summary.failed) == (5, 0)


def test_a_preference_for_a_position_cancels_out_and_shows_in_the_reply() -> None:
    even, biased = (
        run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(4), comparer=FakeComparer(bias=b),
            **EVERYTHING)
        for b in (0.0, 0.15)
    )  # fmt: skip
    pairs = zip(compared(even.trials), compared(biased.trials), strict=True)
    for one, other in pairs:
        assert one.objective == pytest.approx(other.objective)
        assert other.verdict.text.startswith("in this order 0.")
        assert "the other way 0." in other.verdict.text
        assert other.cost.verifier_calls == 2


def test_only_ties_are_compared() -> None:
    comparer = FakeComparer()
    run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(4), comparer=comparer, ties=3)
    assert comparer.trace == []
    same = FakeVerifier(lambda image, prompt: {"a": 0.5})
    result = run(["a"], FakeGenerator(), same, BestOfN(4), objective={"a": 1}, comparer=comparer,
                 ties=3)  # fmt: skip
    assert len(compared(result.trials)) == 3


def test_the_verifier_itself_compares_by_views_of_the_images() -> None:
    verifier = FakeVerifier()
    result = run(["a"], FakeGenerator(batch_size=8), verifier, BestOfN(4), **EVERYTHING)
    # Three images of five views each, diagnosed once for all pairs in both orders.
    assert verifier.trace == ["v4", "v15"]
    assert all("heat" in t.verdict.text for t in compared(result.trials))
    assert all(0 <= t.objective <= 1 for t in compared(result.trials))


def test_after_looks_the_images_that_were_looked_at_are_compared() -> None:
    result = run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(4), looks=2, ties=3, near=9.0,
                 comparer=FakeComparer())  # fmt: skip
    (pair,) = compared(result.trials)
    looks = {t.parent_id for t in result.trials if t.parent_id} - {None}
    assert {pair.proposal.parent, pair.proposal.rival} <= looks
    assert result.choices["0000"].trial.proposal.parent in looks


def test_a_log_continues_extends_replays_and_reports(tmp_path: Path) -> None:
    folder, more = tmp_path / "run", EVERYTHING | {"comparer": FakeComparer()}
    parts = (FakeGenerator(), FakeVerifier())
    first = run(["a", "b"], *parts, BestOfN(3), folder=folder, **more)
    table = pd.read_parquet(folder / "trials.parquet")
    rows = table[table.kind == "compare"]
    assert len(rows) == 6
    assert (rows.verifier_calls == 2).all()
    assert rows.seed.isna().all()
    assert set(rows.image_path) <= set(table[table.kind == "draw"].image_path)
    again = FakeComparer()
    second = run(["a", "b"], *parts, BestOfN(3), folder=folder, **more | {"comparer": again})
    assert again.trace == []
    assert [c.trial.id for c in second.choices.values()] == [
        c.trial.id for c in first.choices.values()
    ]
    longer = run(["a", "b"], *parts, BestOfN(6), folder=folder, **more)
    fresh = run(["a", "b"], *parts, BestOfN(6), **more)
    chosen = [c.trial.id for c in fresh.choices.values()]
    assert [c.trial.id for c in longer.choices.values()] == chosen
    table = pd.read_parquet(folder / "trials.parquet")
    assert sorted(table[table.chosen].trial_id) == sorted(chosen)
    assert replay_log(folder).candidates == 6
    write_report([folder], folder / "page.html")
    assert "compared with" in "".join(whole(p) for p in folder.glob("*.html"))
    with pytest.raises(RunError, match="ties: 3 there, 'absent' here"):
        run(["a", "b"], *parts, BestOfN(6), folder=folder)


class Crashing(FakeComparer):
    def compare(self, first, second, prompts):
        raise RuntimeError("no connection")


def test_a_comparison_that_fails_is_a_tie_with_its_reason() -> None:
    with pytest.warns(match="A candidate failed"):
        crashed = run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(3), comparer=Crashing(),
                      **EVERYTHING)  # fmt: skip
    silent = FakeComparer(unparsable=lambda one, other: True)
    mute = run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(3), comparer=silent, **EVERYTHING)
    best = run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(3))
    assert {t.error for t in compared(crashed.trials)} == {"RuntimeError: no connection"}
    assert {t.error for t in compared(mute.trials)} == {"the comparison has no usable preference"}
    for result in (crashed, mute):
        assert result.choices["0000"].trial.id == best.choices["0000"].trial.id
        assert not crashed.summaries[0].chosen.error


def test_comparisons_have_their_calls_for_certain_and_keep_to_the_budget() -> None:
    budget = Budget(verifier_calls=11)
    result = run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(9), budget=budget,
                 comparer=FakeComparer(), **EVERYTHING)  # fmt: skip
    assert len(result.trials) == 5 + 3
    assert sum(t.cost.verifier_calls for t in result.trials) == 11


class Offline(FakeVerifier):
    """Does not answer when it is asked about views."""

    def verify(self, images, prompts, *, detail="diagnose"):
        if len(images) % 5:
            return super().verify(images, prompts, detail=detail)
        return [Verdict({"overall": math.nan}, error="no answer in time") for _ in images]


def test_a_comparison_by_views_says_why_the_verifier_has_no_scores() -> None:
    result = run(["a"], FakeGenerator(), Offline(), BestOfN(3), **EVERYTHING)
    assert {t.error for t in compared(result.trials)} == {"no answer in time"}


class Paid(FakeComparer):
    def compare(self, first, second, prompts):
        verdicts = super().compare(first, second, prompts)
        return [replace(v, scores={**v.scores, "cost_usd": 0.25}) for v in verdicts]


def test_what_a_comparison_cost_is_in_its_row(tmp_path: Path) -> None:
    run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(4), ties=2, near=1.0, comparer=Paid(),
        folder=tmp_path / "run")  # fmt: skip
    paid = [t.scores["cost_usd"] for t in compared(read_trials(tmp_path / "run"))]
    assert paid == [0.5]


class Short(FakeComparer):
    def compare(self, first, second, prompts):
        return []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ties": 1}, "ties must be a number of images, 0 or at least 2, got 1"),
        ({"ties": True}, "ties must be a number of images"),
        ({"ties": 2, "near": -0.1}, "near must be a finite number, not negative, got -0.1"),
        ({"ties": 2, "near": "x"}, "near must be a finite number"),
        ({"comparer": object()}, "The comparer must be an object with compare and settings"),
        ({"ties": 4, "budget": Budget(verifier_calls=12)}, "take up to 12 of 12"),
    ],
)
def test_unusable_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(4), **options)


def test_a_comparer_owes_a_verdict_for_each_pair() -> None:
    with pytest.raises(RunError, match="Short must return a verdict for each of 6 pairs"):
        run(
            ["a"], FakeGenerator(), FakeVerifier(), BestOfN(4), **EVERYTHING | {"comparer": Short()}
        )


def test_a_recipe_and_a_rejudged_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "generator: {name: fake}\nverifier: {name: fake}\nstrategy: {name: best_of_n, n: 3}\n"
        "prompts: [a]\nties: 3\nnear: 9\ncomparer: {name: fake, bias: 0.0}\n"
    )
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    assert CliRunner().invoke(run_command, [str(path), "--output", first]).exit_code == 0
    assert len(compared(read_trials(Path(first)))) == 3
    arguments = [str(path), "--rejudge", first, "--output", second]
    result = CliRunner().invoke(run_command, arguments)
    assert result.exit_code == 0, result.output
    assert len(compared(read_trials(Path(second)))) == 3
    with pytest.raises(RecipeError, match="ties must be a number of images"):
        load_recipe(path, ["ties=1"]).build()
    with pytest.raises(RecipeError, match=r"Unknown comparer 'fak'"):
        load_recipe(path, ["comparer.name=fak"]).build()


def test_a_verifier_that_cannot_compare_needs_a_comparer() -> None:
    class Plain:
        settings = {"verifier": "plain"}  # noqa: RUF012
        verify = FakeVerifier.verify

    with pytest.raises(InputError, match=r"ties needs a comparer, .* got Plain"):
        run(["a"], FakeGenerator(), Plain(), BestOfN(3), ties=2)
