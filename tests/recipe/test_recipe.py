"""Recipes: what they build, and what every mistake in them says."""

import contextlib
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from tts_verifier import registry
from tts_verifier.errors import RecipeError, TTSError, UnsupportedError
from tts_verifier.recipe import load_recipe, recipe_folder, run_recipe, yaml_lines
from tts_verifier.registry import parameters
from tts_verifier.registry.signatures import value_fits
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Budget, Prompt
from tts_verifier.verifiers.imagedoctor import ImageDoctor

GOOD = """\
generator: {name: fake, batch_size: 2}
verifier:
  name: fake
strategy:
  name: best_of_n
  n: 3
prompts: [a red circle, {id: 7, prompt: 一只猫}]
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text, "utf-8")
        return path

    return write


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides).build()
    return str(caught.value).removeprefix(f"{path.parent}/")


# -- good ones -----------------------------------------------------------------------------


def test_a_recipe_builds_its_objects(write) -> None:
    recipe = load_recipe(write(GOOD + "seed: 5\nbudget: {candidates: 9, seconds: 1e3}\n"))
    search = recipe.build()
    assert isinstance(search.generator, FakeGenerator)
    assert search.generator.batch_size == 2
    assert isinstance(search.verifier, FakeVerifier)
    assert isinstance(search.strategy, BestOfN)
    assert (search.strategy.n, search.seed, search.judge) == (3, 5, None)
    assert search.budget == Budget(candidates=9, seconds=1000.0)
    assert recipe.prompts == (Prompt("0000", "a red circle"), Prompt("7", "一只猫"))
    assert recipe.output == Path("runs/mine")


def test_overrides_are_typed_and_make_new_sections(write) -> None:
    overrides = ("strategy.n=16", "judge.name=fake", "objective.weights.overall=1", "output=x=y")
    recipe = load_recipe(write(GOOD), overrides)
    search = recipe.build()
    assert search.strategy.n == 16
    assert isinstance(search.judge, FakeVerifier)
    assert search.objective.weights == {"overall": 1}
    assert recipe.output == Path("x=y")


@pytest.mark.parametrize("name", sorted(p.stem for p in recipe_folder().glob("*.yaml")))
def test_a_resolved_recipe_can_be_read_again(name: str, write) -> None:
    resolved = load_recipe(name).resolved()
    assert load_recipe(write(yaml.safe_dump(resolved))).resolved() == resolved


def test_a_resolved_recipe_has_the_defaults_and_is_json(write) -> None:
    resolved = load_recipe(write(GOOD)).resolved()
    assert json.loads(json.dumps(resolved)) == resolved
    assert resolved == {
        "generator": {"name": "fake", "batch_size": 2, "size": 16, "steps": 10, "fails": None},
        "verifier": {"name": "fake", "scores": None, "unparsable": None},
        "strategy": {"name": "best_of_n", "n": 3},
        "seed": 0,
        "prompts": [
            {"id": "0000", "prompt": "a red circle"},
            {"id": "7", "prompt": "一只猫"},
        ],
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "\ufeffa red circle\n\n  一只猫 \r\n"),
        ("p.jsonl", '{"prompt": "a red circle", "id": "0000"}\n\n{"id": "0001", "text": "一只猫"}'),
        ("p.jsonl", '"a red circle"\n"一只猫"'),
        ("p.jsonl", '"a red circle"\r\n\n"一只猫"\r\n'),
    ],
)
def test_prompts_come_from_a_file_beside_the_recipe(
    write, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    inline = "prompts: [a red circle, {id: 7, prompt: 一只猫}]"
    recipe = load_recipe(write(GOOD.replace(inline, f"prompts: {name}")))
    assert recipe.prompts == (Prompt("0000", "a red circle"), Prompt("0001", "一只猫"))


def test_a_line_separator_inside_a_prompt_does_not_end_its_line(write, tmp_path: Path) -> None:
    line = json.dumps("a red\u2028circle", ensure_ascii=False)
    (tmp_path / "p.jsonl").write_text(line + "\n", "utf-8")
    recipe = load_recipe(write(GOOD), [f"prompts={tmp_path / 'p.jsonl'}"])
    assert recipe.prompts == (Prompt("0000", "a red\u2028circle"),)


def test_prompts_of_an_override_come_from_the_working_folder(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "p.txt").write_text("a star")
    monkeypatch.chdir(tmp_path / "here")
    assert load_recipe(write(GOOD), ["prompts=p.txt"]).prompts == (Prompt("0000", "a star"),)


def test_a_bare_name_is_a_packaged_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("fake").output == Path("runs/fake")
    with pytest.raises(RecipeError, match=r"no packaged recipe 'nothing'\. Available: .*fake"):
        load_recipe("nothing")


@pytest.mark.parametrize("path", sorted(recipe_folder().glob("*.yaml")), ids=lambda p: p.stem)
def test_every_packaged_recipe_has_known_keys_and_a_reason(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# "), "says what it is for"
    assert set(yaml.safe_load(text)) >= {"generator", "verifier", "strategy", "prompts", "output"}


def test_a_recipe_runs_and_leaves_pictures(write, tmp_path: Path) -> None:
    said: list[str] = []
    text = str(run_recipe(load_recipe(write(GOOD)), output=tmp_path / "run", say=said.append))
    assert "strategy:\n  name: best_of_n\n  n: 3" in said[0]
    assert "No held-out judge was named" in text
    assert sorted(p.name for p in (tmp_path / "run" / "chosen").iterdir()) == ["0000.png", "7.png"]
    header = json.loads((tmp_path / "run" / "header.json").read_text())
    assert header["about"]["recipe"] == load_recipe(write(GOOD)).resolved()


# -- mistakes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "  n: 3",
            "  m: 3",
            "mine.yaml:6: unknown key 'strategy.m'. Available: n.",
        ),
        ("strategy:", "stratgy:", "mine.yaml:4: unknown key 'stratgy'. Did you mean 'strategy'?"),
        ("  n: 3", "  n: many", "mine.yaml:6: strategy.n must be a whole number, got 'many'."),
        ("  n: 3", "  n: 2.0", "mine.yaml:6: strategy.n must be a whole number, got 2.0."),
        ("  n: 3", "  n: yes", "mine.yaml:6: strategy.n must be a whole number, got True."),
        ("  n: 3", "  n: 0", "mine.yaml:6: n must be a positive integer, got 0."),
        ("batch_size: 2", "size: 5", "mine.yaml:1: batch_size, size and steps must be positive"),
        ("  n: 3", "  n: 3\n  n: 4", "mine.yaml:7: strategy.n is set twice."),
        ("  n: 3", "  n: [3", "mine.yaml:7: a recipe must be YAML: "),
        ("  n: 3", "  n: &x 3\nseed: *x", "mine.yaml:7: a recipe has no aliases, got *x."),
        ("  n: 3", "  3: n", "mine.yaml:6: a key must be a word."),
        ("best_of_n", "best-of-n", "mine.yaml:5: Unknown strategy 'best-of-n'. Did you mean"),
        ("  name: best_of_n\n", "", "mine.yaml:4: strategy needs a 'name', one of "),
        ("verifier:\n  name: fake", "verifier: fake", "mine.yaml:2: verifier must be a table"),
        ("verifier:\n  name: fake", "verifier:", "mine.yaml:2: a recipe needs 'verifier'"),
        ("prompts: [a red circle,", "prompts: [' ',", "mine.yaml:7: Prompt 0 must be a text"),
        ("prompts: [", "prompts: no.txt #", "mine.yaml:7: The prompts "),
        ("prompts: [", "prompts: no.csv #", "mine.yaml:7: The prompts "),
        ("prompts: [", "prompts: a cat #", "mine.yaml:7: A file of prompts must be .txt or"),
        ("prompts: [", "prompts: {file: 5} #", "mine.yaml:7: prompts.file must be a text, got 5"),
        ("prompts: [", "prompts: {x: 5} #", "mine.yaml:7: prompts must be a list or a .txt"),
        ("prompts: [", "prompts: 5 #", "mine.yaml:7: prompts must be a list or a .txt"),
        ("prompts: [", "prompts: [] #", "mine.yaml:7: A run needs at least one prompt"),
        ("{id: 7,", "{id: [7],", "mine.yaml:7: Prompt 1 must have a string or a number as id"),
        ("{id: 7,", "{tag: [7],", "mine.yaml:7: Prompt 1 must have a text or a number as tag, got"),
    ],
)
def test_a_mistake_is_named_with_its_line(write, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert message(write(GOOD.replace(old, new))).startswith(expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("seed: one", "mine.yaml:8: seed must be a whole number, got 'one'."),
        ("detail: deep", "mine.yaml:8: detail must be 'score' or 'diagnose', got 'deep'."),
        ("output: 5", "mine.yaml:8: output must be a text, got 5."),
        ("budget: {minutes: 5}", "mine.yaml:8: unknown key 'budget.minutes'. Available: "),
        ("budget: {seconds: long}", "mine.yaml:8: budget.seconds must be a number or none"),
        ("objective: {}", "mine.yaml:8: An objective needs"),
        ("objective: {weights: {a: 0}}", "mine.yaml:8: An objective needs a weight"),
        # The message does not start with the argument, and still the argument's line is found.
        ("objective:\n  weights: {a: 0}", "mine.yaml:9: An objective needs a weight"),
        ("objective: {weights: {a: x}}", "mine.yaml:8: objective.weights must be"),
    ],
)
def test_a_mistake_in_an_optional_section_too(write, line: str, expected: str) -> None:
    if line == "objective: {}":
        # Without weights the official ones count.
        assert load_recipe(write(GOOD + line)).build().objective.weights["aesthetics"] == 0.1
    else:
        assert message(write(GOOD + line)).startswith(expected)


def test_a_mistake_inside_a_table_is_named_with_the_line_of_the_table(write) -> None:
    adaptive = """\
  name: adaptive
  strategy: {name: best_of_n, n: 3}
  thresholds: {overall: .nan}
"""
    rule = "strategy.thresholds.overall must be a finite number that a float can hold, got another."
    expected = f"mine.yaml:7: {rule}"
    assert message(write(GOOD.replace("  name: best_of_n\n  n: 3\n", adaptive))) == expected


ADAPTIVE = """\
  name: adaptive
  strategy: {name: best_of_n, n: 3}
  thresholds:
    overall: 0.9
    overal: 0.5
"""
MISSPELT = "must name scores that the verifier gives, got 'overal'. Did you mean 'overall'? Avail"


def test_a_misspelt_score_is_named_with_its_line(write) -> None:
    weights = "objective:\n  weights:\n    aesthetics: 1\n    overal: 1\n"
    expected = f"mine.yaml:11: An objective {MISSPELT}"
    assert message(write(GOOD + weights)).startswith(expected)
    override = "objective.weights.overal=1"
    expected = f"override '{override}': An objective {MISSPELT}"
    assert message(write(GOOD), override).startswith(expected)
    thresholds = GOOD.replace("  name: best_of_n\n  n: 3\n", ADAPTIVE)
    expected = f"mine.yaml:9: Adaptive's thresholds {MISSPELT}"
    assert message(write(thresholds)).startswith(expected)


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("looks: 4", (), "mine.yaml:7: looks must be at most 3, as many images as are finished"),
        ("looks: -1", (), "mine.yaml:7: looks must be a number of images, 0 or more, got -1."),
        ("looks: few", (), "mine.yaml:7: looks must be a whole number, got 'few'."),
        ("looks: 1", ("detail=diagnose",), "mine.yaml:7: looks needs detail 'score', got 'diagn"),
        ("", ("looks=4",), "override 'looks=4': looks must be at most 3, as many images as are fi"),
    ],
)
def test_looks_that_do_not_fit_are_named_with_their_line_before_weights_load(
    write, monkeypatch: pytest.MonkeyPatch, text: str, overrides: tuple, expected: str
) -> None:
    monkeypatch.setattr(ImageDoctor, "__init__", None)
    bundled = GOOD.replace(
        "verifier:\n  name: fake", "verifier: {name: imagedoctor, model: shapes}"
    )
    text = bundled.rstrip("\n") + f"\n{text}\n"
    assert message(write(text), *overrides).startswith(expected)


def test_a_judge_as_verifier_has_no_quick_score(write) -> None:
    text = GOOD.replace("verifier:\n  name: fake", "verifier: {name: shapes-judge}") + "looks: 1\n"
    with pytest.raises(TTSError, match="quick score beside its diagnosis, JudgeVerifier has diag"):
        load_recipe(write(text)).build()


def test_a_misspelt_score_is_named_before_weights_load(
    write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageDoctor, "__init__", None)
    text = GOOD.replace("verifier:\n  name: fake", "verifier: {name: imagedoctor, model: shapes}")
    got = message(write(text), "objective.weights.overal=1")
    assert "Did you mean 'overall' or 'overall_expected'?" in got


def test_a_budget_of_nothing_is_refused(write) -> None:
    with pytest.raises(TTSError, match="Every limit of a budget must be positive"):
        load_recipe(write(GOOD + "budget: {candidates: 0}")).build()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("strategy.n=0", "override 'strategy.n=0': n must be a positive integer, got 0."),
        ("strategy.n=x", "override 'strategy.n=x': strategy.n must be a whole number, got 'x'."),
        ("strategy.m=1", "override 'strategy.m=1': unknown key 'strategy.m'."),
        ("n=1", "override 'n=1': unknown key 'n'. Did you mean 'strategy.n'?"),
        (
            "strategy={name: best_of_n, n: 0}",
            "override 'strategy={name: best_of_n, n: 0}': n must be a positive integer, got 0.",
        ),
        ("strategy.n", "An override must look like strategy.n=16, got 'strategy.n'."),
        ("=3", "An override must look like strategy.n=16, got '=3'."),
        ("seed.x=3", "unknown key"),
        ("prompts.x=3", "override 'prompts.x=3': prompts is a value, not a table of keys."),
        ("seed=[", "override 'seed=[': the value must be YAML: "),
        ("verifier.name=none", "override 'verifier.name=none': Unknown verifier 'none'."),
    ],
)
def test_a_wrong_override_is_named(write, override: str, expected: str) -> None:
    if override == "seed.x=3":
        assert message(write(GOOD), override).endswith("seed must be a whole number, got {'x': 3}.")
    else:
        assert message(write(GOOD), override).startswith(expected)


@pytest.mark.parametrize(
    "text", ["", "5", "- a", "[" * 500, "a: !!int ''", "a: 2020-99-99", "\x00"]
)
def test_what_is_no_table_is_refused(write, text: str) -> None:
    assert message(write(text)).startswith("mine.yaml")


BOMB = "a: &a [x, x]\n" + "".join(f"{n}: &{n} [*{p}, *{p}]\n" for p, n in pairwise("abcdefghij"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BOMB, "mine.yaml:2: a recipe has no aliases, got *a."),
        ("a: &a [*a]", "mine.yaml:1: a recipe has no aliases, got *a."),
        ("a: " + "[" * 100_000, "mine.yaml:1: a recipe must be nested at most 50 deep"),
        ("a: " + "{a: " * 5_000, "mine.yaml:1: a recipe must be nested at most 50 deep"),
        ("\n".join("  " * i + "a:" for i in range(300)), "mine.yaml:51: a recipe must be nested"),
        ("- " * 500, "mine.yaml:1: a recipe must be nested at most 50 deep"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "mine.yaml:1: a recipe has no tags, got tag:ya",
        ),
        ("a: !!python/name:os.system", "mine.yaml:1: a recipe has no tags"),
        ("a: 0x" + "f" * 9_000, "mine.yaml:1: a number must have fewer than 1000 digits, got 9002"),
        ("a: 1" + ":59" * 9_000, "mine.yaml:1: a number must have fewer than 1000 digits"),
        ("a: !mine x", "mine.yaml:1: a recipe has no tags, got !mine"),
        ("a: [{b: 1, b: 2}]", "mine.yaml:1: b is set twice in a table."),
        ("a:\n- b: 1\n  c:\n  - d: 1\n    d: 1", "mine.yaml:5: d is set twice in a table."),
    ],
)
def test_yaml_that_would_exhaust_or_run_something_is_refused(
    write, text: str, expected: str
) -> None:
    assert message(write(text)).startswith(expected)
    # As the value of an override too.
    override = "strategy=" + text.removeprefix("a: ")
    with pytest.raises(RecipeError, match=r"^override 'strategy="):
        load_recipe(write(GOOD), [override])


def test_a_recipe_that_is_too_long_is_refused(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_lines, "MAX_NODES", 30)
    assert "a recipe must have at most 30 keys and values" in message(write(f"a: {[1] * 30}"))
    monkeypatch.setattr(yaml_lines, "MAX_CHARACTERS", 100)
    assert message(write("#" * 101)) == "mine.yaml: a recipe must have at most 100 characters, " \
        "it has more. Put long lists of prompts into a file."  # fmt: skip


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for place in (tmp_path, tmp_path / "pipe.yaml", Path("/dev/zero")):
        with pytest.raises(RecipeError, match=r"cannot be read: .*a regular file is needed"):
            load_recipe(place)


@pytest.mark.parametrize(
    "number", [".nan", ".inf", "-.inf", "1e400", "-1.0e+999", "1" + "0" * 400, "0x" + "f" * 300]
)
@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("seed: {}", "seed"),
        ("budget: {{seconds: {}}}", "budget.seconds"),
        ("objective: {{weights: {{overall: {}}}}}", "objective.weights.overall"),
        ("judge: {{name: fake, scores: [1, [{}]]}}", "judge.scores"),
    ],
)
def test_a_number_that_is_not_finite_is_named_with_its_line(
    write, number: str, line: str, key: str
) -> None:
    expected = f"mine.yaml:8: {key} must be a finite number that a float can hold, got another."
    assert message(write(GOOD + line.format(number))) == expected
    override = f"{key}={number}"
    if "[" not in line:
        refusal = message(write(GOOD), override)
        assert refusal.startswith(f"override '{override}"[:200])
        assert f"': {key} must be a" in refusal


@pytest.mark.parametrize("n", ["10000000000000000000000", "1000001"])
def test_a_number_of_candidates_that_would_fill_the_memory_is_refused(write, n: str) -> None:
    text = GOOD.replace("n: 3", f"n: {n}")
    assert message(write(text)) == "mine.yaml:6: n must be at most 1000000, it is larger."


@pytest.mark.parametrize("n", ["'3'", "3.0", "true", "2020-01-01", "[3]", "{a: 3}", "null", "~"])
def test_a_number_is_written_as_one(write, n: str) -> None:
    text = GOOD.replace("n: 3", f"n: {n}")
    assert message(write(text)).startswith("mine.yaml:6: strategy.n must be a whole number, got ")


@pytest.mark.parametrize(
    "prompt",
    ["''", "'  '", '"\\t\\n"', "null", "5", "yes", "[]", "{}", "{prompt: ''}", '"\\ud800"',
     "{prompt: [x]}", "2020-01-01"],
)  # fmt: skip
def test_a_prompt_that_is_none_is_refused_with_its_place(write, prompt: str) -> None:
    text = GOOD.replace("{id: 7, prompt: 一只猫}", prompt)
    assert message(write(text)).startswith("mine.yaml:7: Prompt 1 must ")


def test_a_control_token_in_a_prompt_is_text(write) -> None:
    text = GOOD.replace("a red circle", "<|im_end|> </answer>")
    assert load_recipe(write(text)).prompts[0].text == "<|im_end|> </answer>"


def test_a_tilde_is_home_in_every_path(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "p.txt").write_text("a star\n")
    (home / "r.yaml").write_text(write(GOOD).read_text())
    inline = "prompts: [a red circle, {id: 7, prompt: 一只猫}]"
    recipe = load_recipe(write(GOOD.replace(inline, "prompts: ~/p.txt\noutput: ~/runs/x")))
    assert recipe.prompts[0].text == "a star"
    assert recipe.output == home / "runs" / "x"
    overrides = ["prompts=~/p.txt", "output='~/y'"]
    assert load_recipe("~/r.yaml", overrides).prompts[0].text == "a star"
    assert load_recipe("~/r.yaml", overrides).output == home / "y"
    run_recipe(load_recipe("~/r.yaml"), output=Path("~/z"), say=lambda text: None)
    again = {"output": Path("~/again"), "rejudge": Path("~/z")}
    run_recipe(load_recipe("~/r.yaml"), say=lambda text: None, **again)
    assert sorted(p.name for p in home.iterdir() if p.is_dir()) == ["again", "z"]
    assert load_recipe("~/r.yaml", ["output=$HOME/y"]).output == Path("$HOME/y")
    assert message(write(GOOD), "output=~nobody-at-all/x").startswith("override 'output=~nobody")
    assert "none of that name" in message(write(GOOD.replace(inline, "prompts: ~nobody-at-all/x")))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"The recipe .*gone\.yaml cannot be read"):
        load_recipe(tmp_path / "gone.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"bytes\.yaml cannot be read"):
        load_recipe(tmp_path / "bytes.yaml")


@pytest.mark.parametrize(
    ("content", "expected"),
    [('{"id": 1}', "Prompt 0 must be a text"), ("{", "p.jsonl:2 must be JSON"), ("5", "Prompt 0")],
)
def test_a_line_that_is_no_prompt_is_named(
    write, tmp_path: Path, content: str, expected: str
) -> None:
    (tmp_path / "p.jsonl").write_text("\n" + content)
    assert expected in message(write(GOOD), f"prompts={tmp_path / 'p.jsonl'}")


def test_a_missing_argument_is_named(write, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"verifier": {"fake": "fractions:Fraction.from_float"}}
    monkeypatch.setattr(registry, "BUILT_IN", {**registry.BUILT_IN, **table})
    assert message(write(GOOD)) == (
        "mine.yaml:2: verifier fake needs f, which is not given. "
        "See tts-run --explain verifier.fake."
    )


class CannotContinue(FakeGenerator):
    supports = frozenset()

    def __init__(self, batch_size: int = 1) -> None:
        raise AssertionError("weights would load here")


def test_what_does_not_fit_is_said_before_weights_load(
    write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "builder", lambda role, name: {
        "generator": CannotContinue, "verifier": FakeVerifier, "strategy": BestOfN,
    }[role])  # fmt: skip
    with pytest.raises(UnsupportedError, match="BestOfN needs a generator that can draw"):
        load_recipe(write(GOOD)).build()


# -- signatures ----------------------------------------------------------------------------


def test_a_from_pretrained_has_its_options_as_keys() -> None:
    found = parameters(registry.builder("verifier", "imagedoctor"))
    assert next(iter(found)) == "model"
    assert {"fit", "batch_size", "revision"} <= set(found)
    assert value_fits("squash", found["fit"][0])
    assert not value_fits("stretch", found["fit"][0])
    assert value_fits("bfloat16", found["dtype"][0])
    assert not value_fits(16, found["dtype"][0])
    assert value_fits("fp8", found["precision"][0])
    assert not value_fits("fp4", found["precision"][0])


class Reads(Protocol):
    def read(self) -> str: ...


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, float, True),
        (1.5, int, False),
        (True, float, False),
        (True, bool, True),
        (None, int | None, True),
        ("a", Literal["a", 1], True),
        (True, Literal["a", 1], False),
        ([1, 2], list[int], True),
        ([1, "x"], tuple[int, ...], False),
        ("ab", list[str], False),
        ({"a": 1}, dict[str, float], True),
        ({1: 1}, dict[str, float], False),
        ("a", Reads | str, True),
        (1, Reads, True),
    ],
)
def test_values_fit_annotations(value: object, kind: object, expected: bool) -> None:
    assert value_fits(value, kind) is expected


# -- anything at all -------------------------------------------------------------------------

KEYS = ["generator", "verifier", "judge", "strategy", "objective", "budget", "prompts", "seed"]
INNER = ["name", "n", "weights", "fake", "best_of_n", "id", "prompt", "candidates", "output", "x"]
WORDS = st.sampled_from([*KEYS, *INNER])
ATOMS = st.one_of(st.none(), st.booleans(), st.integers(-3, 5), st.floats(), WORDS)
VALUES = st.recursive(
    st.one_of(ATOMS, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=12,
)


@given(VALUES)
@example({"generator": {"name": "fake"}, "verifier": {"name": "fake"}, "prompts": [{"id": "x"}]})
def test_any_values_build_or_are_refused_clearly(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    good = yaml.safe_load(GOOD)
    mixed = {**good, **value} if isinstance(value, dict) else value
    path = tmp_path_factory.mktemp("recipe") / "any.yaml"
    for document in (value, mixed):
        path.write_text(yaml.safe_dump(document, allow_unicode=True), "utf-8")
        with contextlib.suppress(TTSError):
            load_recipe(path).build()


@given(st.text(st.characters(codec="utf-8"), max_size=60))
@example("a: !!timestamp x")
@example("!!python/object:os.system {}")
@example("a: !!bool x")
@example("? {a: b}\n: c")
@example("a: 0x")
@example("<<: 5")
@example("a: {<<: [5]}")
def test_any_text_builds_or_is_refused_clearly(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("recipe") / "any.yaml"
    path.write_text(text, "utf-8", newline="")
    with pytest.raises(RecipeError):
        load_recipe(path)
    with pytest.raises(TTSError):
        load_recipe("fake", [text, "strategy.n=0"]).build()


def test_an_override_is_shown_short_and_its_key_is_not_deep(write) -> None:
    long = message(write(GOOD), "strategy.n=" + "x: 1, " * 1000)
    assert long.startswith("override 'strategy.n=x: 1, x: 1")
    assert "…'" in long
    assert len(long) < 400
    # Every table on the way to the key is noted with its place.
    deep = message(write(GOOD), "a." * 20_000 + "a=1")
    assert deep.startswith("override 'a.a.a.")
    assert deep.endswith("a key must be at most 50 deep, got 20001.")


@pytest.mark.parametrize(
    ("inner", "message_start"),
    [
        ("    name: best-of-n\n", "mine.yaml:7: Unknown strategy 'best-of-n'. Did you mean"),
        ("    name: best_of_n\n    n: 0\n", "mine.yaml:8: n must be a positive integer, got 0."),
        (
            "    name: best_of_n\n    m: 2\n",
            "mine.yaml:8: strategy 'best_of_n' has no argument 'm'",
        ),
        ("    n: 2\n", "mine.yaml:6: strategy needs a 'name' beside its arguments"),
    ],
)
def test_a_mistake_in_a_strategy_inside_another_is_named_with_its_line(
    write, inner: str, message_start: str
) -> None:
    thresholds = "  thresholds: {overall: 0.5}\n"
    text = GOOD.replace("best_of_n\n  n: 3\n", f"adaptive\n  strategy:\n{inner}{thresholds}")
    assert message(write(text)).startswith(message_start)
    named = "    name: best_of_n\n    n: 2\n"
    wrong = text.replace(inner, named).replace("overall", "overal")
    assert message(write(wrong)).startswith("mine.yaml:9: ")
