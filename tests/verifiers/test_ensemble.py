"""Several verifiers as one: in Python, recipes, tts-score, a rejudged run and the log."""

import json
import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from tts_verifier import Objective, Verifier, run
from tts_verifier.cli.run import run_command
from tts_verifier.cli.score import score_command
from tts_verifier.errors import InputError, RecipeError, RunError
from tts_verifier.recipe import load_recipe, verifier_of_recipe
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier, check_verifier
from tts_verifier.types import Heatmap, Heatmaps, Verdict
from tts_verifier.verifiers.ensemble import Ensemble

PAGE = Path(__file__).parents[2] / "tts_verifier" / "verifiers" / "ENSEMBLES.md"
COLOURS = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
RECIPE = """\
generator: {name: fake}
verifier:
  name: ensemble
  members:
    one: {name: fake}
    two: {name: fake}
objective:
  weights: {one_aesthetics: 1, two_plausibility: 2}
  combine: %s
strategy: {name: best_of_n, n: 4}
prompts: [a red circle]
"""


def blue(image: Image.Image, prompt: str) -> dict[str, float]:
    value = image.getpixel((0, 0))[2] / 255
    return {"blue": value if value < 1 else math.nan}


def pair() -> Ensemble:
    judge = FakeVerifier(blue)
    judge.objective = Objective({"blue": 1.0})
    return Ensemble({"doctor": FakeVerifier(), "blue": judge})


def test_it_conforms() -> None:
    check_verifier(pair(), COLOURS, ["x", "y"])
    check_verifier(Ensemble({"one": {"name": "fake"}}), COLOURS, ["x", "y"])


def test_a_verdict_has_the_scores_maps_boxes_and_texts_of_all_members() -> None:
    verdict = pair().verify(COLOURS, ["x", "y"])[0]
    assert verdict.scores["doctor_semantic_alignment"] == 1.0
    assert verdict.scores["blue_blue"] == 0.0
    assert sorted(verdict.heatmaps) == [
        "blue_artifact", "blue_misalignment", "doctor_artifact", "doctor_misalignment",
    ]  # fmt: skip
    assert len(verdict.boxes) == 2
    assert verdict.text.splitlines()[1] == "blue: blue=0.000"
    assert verdict.cost.verifier_calls == 1


def test_a_missing_score_has_the_reason_of_its_member() -> None:
    class Silent(Verifier):
        settings: ClassVar = {"verifier": "silent"}
        score_names = ("x",)

        def verify(self, images, prompts, *, detail="diagnose"):
            return [Verdict({"x": math.nan}, error="no answer in time") for _ in images]

    both = Ensemble({"doctor": FakeVerifier(), "chat": Silent()})
    verdict = both.verify(COLOURS, ["x", "y"])[0]
    assert verdict.error == "chat: no answer in time"
    setup = (FakeGenerator(), both, BestOfN(1))
    result = run(["x"], *setup, objective=Objective({"chat_x": 1.0}))
    assert result.trials[0].error == verdict.error
    result = run(["x"], *setup, objective=Objective({"doctor_overall": 1.0}))
    assert result.trials[0].error == ""


def test_it_says_what_its_members_say() -> None:
    named = Ensemble({"a": FakeVerifier(), "b": FakeVerifier()})
    assert named.score_names[:2] == ("a_semantic_alignment", "a_aesthetics")
    assert pair().score_names is None
    assert named.settings == {"verifier": "ensemble", "a.model": "fake", "b.model": "fake"}
    assert named.objective.weights["b_semantic_alignment"] == pytest.approx(0.4)
    quick, slow = FakeVerifier(), FakeVerifier()
    quick.details, slow.details = ("score",), ("diagnose",)
    assert Ensemble({"a": quick}).details == ("score",)
    assert Ensemble({"a": quick, "b": slow}).details == ("diagnose",)
    assert Ensemble({"a": quick, "b": FakeVerifier()}).details == ("score", "diagnose")


@pytest.mark.parametrize(
    ("members", "message", "argument"),
    [
        ({}, "An ensemble needs members by name", "members"),
        ([FakeVerifier()], "An ensemble needs members by name", "members"),
        ({"a b": FakeVerifier()}, "A member's name must be a word", "members"),
        ({"a": 3}, "The member a must be a verifier or a table with its name, got 3", "members.a"),
        ({"a": {"model": "x"}}, "The member a: verifier needs a 'name'", "members.a"),
        ({"a": {"name": "fak"}}, "The member a: Unknown verifier 'fak'", "members.a.name"),
        (
            {"a": {"name": "fake", "x": 1}},
            "The member a: verifier 'fake' has no argument 'x'",
            "members.a.x",
        ),
        (
            {"a": {"name": "clip", "scale": "x"}},
            "The member a: verifier 'clip': scale must be a number or none, got 'x'",
            "members.a.scale",
        ),
        (
            {"a": {"name": "clip", "prefix": None}},
            "verifier 'clip': prefix must be a text, got None",
            "members.a.prefix",
        ),
        (
            {"a": {"name": "hpsv2", "antialias": "no"}},
            "verifier 'hpsv2': antialias must be true or false, got 'no'",
            "members.a.antialias",
        ),
    ],
)
def test_unusable_members_are_refused(members: dict, message: str, argument: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Ensemble(members)
    assert caught.value.argument == argument


def test_two_scores_of_one_name_are_refused() -> None:
    one, two = FakeVerifier(), FakeVerifier()
    one.score_names, two.score_names = ("b_c",), ("c",)
    with pytest.raises(InputError, match="needs a name of its own, a_b_c comes twice"):
        Ensemble({"a": one, "a_b": two})


@pytest.mark.parametrize("what", ["score", "heatmap"])
def test_scores_and_maps_that_are_known_late_do_not_replace_each_other(what: str) -> None:
    class Named(Verifier):
        def __init__(self, name: str) -> None:
            self.name = name

        def verify(self, images, prompts, *, detail="diagnose"):
            maps = {self.name: Heatmap(np.zeros((2, 2), np.float32), (8, 8))}
            score = {self.name: 0.5} if what == "score" else {f"{self.name}{len(self.name)}": 0.5}
            return [Verdict(score, Heatmaps({} if what == "score" else maps)) for _ in images]

    both = Ensemble({"a": Named("b_c"), "a_b": Named("c")})
    with pytest.raises(
        InputError, match=f"Each {what} of an ensemble needs a name of its own, a_b"
    ):
        both.verify(COLOURS[:1], ["x"])


class Silent(FakeVerifier):
    def verify(self, images, prompts, *, detail="diagnose"):
        return []


def test_a_member_that_returns_too_few_verdicts_is_named() -> None:
    with pytest.raises(RunError, match="The member b: Silent must return a verdict for each of 2"):
        Ensemble({"a": FakeVerifier(), "b": Silent()}).verify(COLOURS, ["x", "y"])


def test_a_missing_score_fails_or_is_skipped_and_never_counts_as_zero() -> None:
    weights = {"doctor_semantic_alignment": 1.0, "blue_blue": 1.0}
    failing = pair().rerank(COLOURS, "x", objective=Objective(weights))
    assert failing.best.index == 0
    assert math.isnan(failing[1].objective)
    skipping = pair().rerank(COLOURS, "x", objective=Objective(weights, missing="skip"))
    assert [item.objective for item in skipping] == [1.0, 0.0]


@pytest.mark.parametrize("combine", ["sum", "worst", "mean_rank", "lexicographic"])
def test_a_run_its_log_and_a_continued_run_agree(tmp_path: Path, combine: str) -> None:
    objective = Objective({"doctor_aesthetics": 1.0, "blue_blue": 1.0}, combine, missing="skip")  # type: ignore[arg-type]
    options = {"objective": objective, "folder": tmp_path / "run"}
    result = run(["x", "y"], FakeGenerator(), pair(), BestOfN(4), **options)
    alone = run(["x", "y"], FakeGenerator(), pair(), BestOfN(4), objective=objective)
    assert [t.objective for t in result.trials] == [t.objective for t in alone.trials]
    table = pd.read_parquet(tmp_path / "run" / "trials.parquet")
    assert {"doctor_aesthetics", "blue_blue"} <= set(table.columns)
    by_id = {t.id: t.objective for t in result.trials}
    assert table.objective.tolist() == [by_id[name] for name in table.trial_id]
    for prompt, rows in table.groupby("prompt_id"):
        assert rows.loc[rows.objective.idxmax()].trial_id == result.choices[prompt].trial.id
        assert rows[rows.chosen].trial_id.tolist() == [alone.choices[prompt].trial.id]
    longer = run(["x", "y"], FakeGenerator(), pair(), BestOfN(6), **options)
    whole = run(["x", "y"], FakeGenerator(), pair(), BestOfN(6), objective=objective)
    assert [t.objective for t in longer.trials] == [t.objective for t in whole.trials]


def test_a_recipe_and_a_rejudged_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE % "mean_rank")
    commands = CliRunner()
    first = commands.invoke(run_command, [str(path), "--output", str(tmp_path / "a")])
    assert first.exit_code == 0, first.output
    header = json.loads((tmp_path / "a" / "header.json").read_text())
    assert header["about"]["objective"]["combine"] == "mean_rank"
    path.write_text(RECIPE % "worst")
    options = ["--rejudge", str(tmp_path / "a"), "--output", str(tmp_path / "b")]
    again = commands.invoke(run_command, [str(path), *options])
    assert again.exit_code == 0, again.output
    table = pd.read_parquet(tmp_path / "b" / "trials.parquet")
    worst = table[["one_aesthetics"]].assign(two=2 * table.two_plausibility).min(axis=1)
    assert table.objective.tolist() == pytest.approx(worst.tolist())


def test_a_recipe_names_the_line_of_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((RECIPE % "worst").replace("two: {name: fake}", "two: {name: fak}"))
    with pytest.raises(RecipeError, match=r"mine.yaml:6: The member two: Unknown verifier 'fak'"):
        load_recipe(path).build()
    path.write_text((RECIPE % "worst").replace("two_plaus", "two_plas"))
    with pytest.raises(RecipeError, match=r"mine.yaml:8: An objective must name scores"):
        load_recipe(path).build()


def test_scores_of_files_by_a_recipe(tmp_path: Path) -> None:
    path, red = tmp_path / "mine.yaml", str(tmp_path / "red.png")
    COLOURS[0].save(red)
    arguments = [red, "--prompt", "x", "--format", "jsonl", "--verifier", str(path)]
    path.write_text(RECIPE % "sum")
    result = CliRunner().invoke(score_command, arguments)
    assert result.exit_code == 0, result.output
    row = json.loads(result.output)
    assert row["objective"] == pytest.approx(0.0)
    assert row["one_semantic_alignment"] == 1.0
    path.write_text("verifier: {name: fake}\nobjective: {weights: {overall: 3}}\n")
    assert json.loads(CliRunner().invoke(score_command, arguments).output)["objective"] == 1.0
    path.write_text(RECIPE % "mean_rank")
    refused = CliRunner().invoke(score_command, arguments)
    assert "combine must be 'sum' or 'worst', got 'mean_rank'" in refused.output
    path.write_text("objective: {}\n")
    with pytest.raises(RecipeError, match="a section 'verifier' is needed, it is missing"):
        verifier_of_recipe(path)


def test_an_objective_of_a_recipe_is_part_of_the_key_of_a_row(tmp_path: Path) -> None:
    path, red, out = tmp_path / "mine.yaml", str(tmp_path / "red.png"), tmp_path / "rows.jsonl"
    COLOURS[0].save(red)
    arguments = [red, "--prompt", "x", "--output", str(out), "--verifier", str(path)]
    for weight in (1, 2):
        path.write_text(f"verifier: {{name: fake}}\nobjective: {{weights: {{overall: {weight}}}}}")
        assert CliRunner().invoke(score_command, arguments).exit_code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["objective"] for row in rows] == pytest.approx([1 / 3, 2 / 3])


def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.read_text("utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    exec(compile(code, "ENSEMBLES.md", "exec"), {})
    assert capsys.readouterr().out == "Ranking(1: 1.000, 0: 0.000)\n"
