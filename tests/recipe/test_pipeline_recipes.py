"""The recipes and examples for real pipelines, on random weights of the same architectures."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import tiny_families
from tiny_imagedoctor import example, noise

from tts_verifier.recipe import load_recipe
from tts_verifier.runner import execute

# diffusers' EulerDiscreteScheduler says this of itself with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).parents[2]
RECIPES = {"sd35": "sd3", "flux": "flux", "sdxl": "sdxl", "sana": "sana"}


@pytest.fixture(scope="module")
def doctor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    example().make(folder)
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_with_small_weights_of_its_architecture(name, doctor, tmp_path):
    family = tiny_families.FAMILIES[RECIPES[name]](tmp_path / "words")
    family.pipe.save_pretrained(tmp_path / "model")
    overrides = ["generator.height=32", "generator.width=32", "generator.steps=2", "strategy.n=2"]
    models = [f"generator.model={tmp_path / 'model'}", f"verifier.model={doctor}"]
    small = ["generator.call.max_sequence_length=16"] if name in ("flux", "sana") else []
    if name == "sana":
        small += ["generator.call.use_resolution_binning=false"]
        small += ["generator.call.complex_human_instruction=null"]
        small += ["generator.call.clean_caption=false"]
    if name in ("sd35", "flux"):
        # A tiny transformer has positions for a tiny picture only.
        overrides[:2] = ["generator.height=16", "generator.width=16"]
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", [*overrides, *models, *small])
    assert recipe.resolved()["generator"]["batch_size"] >= 1
    search = recipe.build()
    assert type(search.generator.pipe) is type(family.pipe)
    trials = execute(search, recipe.prompts[:1]).trials
    assert [trial.image.load().size[0] for trial in trials] == [int(overrides[0].split("=")[1])] * 2
    # Replies of random weights cannot be parsed; it is enough that there are some.
    assert all(trial.verdict.text for trial in trials)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_states_expected_memory_and_time(name):
    text = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    assert re.search(r"^# Memory: [\d.]+ GiB of weights", text, re.MULTILINE)
    assert re.search(r"^# Time: \d+ TFLOP per image, so \d+ s for all 8", text, re.MULTILINE)


def run_example(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")


def test_the_example_of_an_own_generator_passes_the_conformance_checks(monkeypatch, capsys):
    run_example(monkeypatch, "own_generator")
    assert capsys.readouterr().out.startswith("best 0.")


def test_the_example_of_an_own_verifier_passes_the_conformance_checks(monkeypatch, capsys):
    run_example(monkeypatch, "own_verifier")
    assert capsys.readouterr().out.count("brightness 0.") == 4


@pytest.mark.filterwarnings("ignore:No image has a usable score")
def test_the_example_of_reranking_sorts_files(monkeypatch, capsys, doctor, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        noise(16, 16, i).save(path)
    run_example(monkeypatch, "rerank", "a red circle", *paths, "--verifier", doctor)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[-1] for line in lines) == sorted(map(str, paths))


def test_the_example_of_wrapping_says_when_no_candidate_is_usable(
    monkeypatch, capsys, doctor, tmp_path
):
    family = tiny_families.FAMILIES["sd3"](tmp_path / "words")
    family.pipe.save_pretrained(tmp_path / "model")
    models = ["--model", tmp_path / "model", "--verifier", doctor, "--candidates", 1]
    arguments = ["a red circle", *models, "--output", tmp_path / "best.png"]
    with pytest.warns(UserWarning, match="0 usable candidates"):
        run_example(monkeypatch, "wrap", *arguments)
    assert "No candidate has a usable verdict" in capsys.readouterr().out
    assert (tmp_path / "best.png").exists()
