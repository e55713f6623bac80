"""Judges by their names: in recipes, held out, verifying again, in tts-score and in pipelines."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from tiny_judges import save_judge

from tts_verifier import run
from tts_verifier.cli.run import run_command
from tts_verifier.errors import RunWarning
from tts_verifier.interfaces import is_movable
from tts_verifier.log import read_trials
from tts_verifier.recipe.recipe import load_recipe
from tts_verifier.scoring import score_files
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.verifiers.vision_language.soft_tifa import SoftTIFA
from tts_verifier.verifiers.vision_language.vqascore import VQAScore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_judge(tmp_path_factory.mktemp("judge"))


def run_recipe(recipe: dict, folder: Path, *arguments: object) -> pd.DataFrame:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    output = folder / "run"
    command = [str(file), "--quiet", "--output", str(output), *map(str, arguments)]
    done = CliRunner().invoke(run_command, command)
    assert done.exit_code == 0, done.output
    return pd.read_parquet(output / "trials.parquet")


def test_a_recipe_verifies_with_one_and_judges_with_another(folder: Path, tmp_path: Path) -> None:
    atoms = tmp_path / "prompts.jsonl"
    row = {"prompt": "a cat", "vqa_list": [["Is there a cat?", "Yes"]]}
    atoms.write_text(json.dumps(row))
    recipe = {
        "generator": {"name": "fake", "batch_size": 2},
        "verifier": {"name": "soft-tifa", "model": str(folder), "atoms": str(atoms)},
        "judge": {"name": "vqascore", "model": str(folder), "batch_size": 1},
        "strategy": {"name": "best_of_n", "n": 3},
        "objective": {"weights": {"soft_tifa_am": 1.0}},
        "prompts": str(atoms),
    }
    table = run_recipe(recipe, tmp_path)
    assert table.objective.tolist() == pytest.approx(table.soft_tifa_am.tolist())
    assert table.judge_vqascore.notna().all()
    assert json.loads(table.reply[0])["question"] == "Is there a cat?"


def test_a_finished_run_is_verified_again_by_a_judge(folder: Path, tmp_path: Path) -> None:
    run(["a cat"], FakeGenerator(), FakeVerifier(), BestOfN(2), folder=tmp_path / "old")
    recipe = {
        "generator": {"name": "fake"},
        "verifier": {"name": "vqascore", "model": str(folder)},
        "strategy": {"name": "best_of_n"},
        "prompts": ["a cat"],
    }
    table = run_recipe(recipe, tmp_path, "--rejudge", tmp_path / "old")
    assert table.vqascore.notna().all()
    assert len(table) == 2


def test_files_are_scored_and_a_score_that_is_missing_has_its_reason(
    folder: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    judge = VQAScore(folder)
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    good, bad = score_files(judge, paths, "a cat")
    assert good["vqascore"] == good["objective"] > 0
    assert "error" in bad
    judge.engine.model.lm_head.weight.data.fill_(float("nan"))
    row = score_files(judge, paths[:1], "a cat")[0]
    assert row["vqascore"] is None
    assert "no finite probability" in row["error"]


def test_a_run_keeps_the_reason_of_a_missing_score(folder: Path, tmp_path: Path) -> None:
    judge = VQAScore(folder)
    judge.engine.model.lm_head.weight.data.fill_(float("nan"))
    result = run(["a cat"], FakeGenerator(), judge, BestOfN(1), folder=tmp_path / "run")
    assert "no finite probability" in result.trials[0].error
    assert "no finite probability" in read_trials(tmp_path / "run")[0].error
    with pytest.warns(RunWarning, match="The judge has no score for a candidate"):
        result = run(["a cat"], FakeGenerator(), FakeVerifier(), BestOfN(1), judge=judge)
    assert str(result.trials[0].judge["vqascore"]) == "nan"


def test_two_judges_share_an_engine_and_it_moves_with_them(folder: Path) -> None:
    first = VQAScore(folder)
    second = SoftTIFA(first.engine)
    assert second.engine is first.engine
    assert (str(second.device), second.home) == ("cpu", None)
    assert second.nbytes > 100_000
    assert is_movable(second)
    assert second.to("cpu") is second


def test_from_pretrained_takes_the_arguments_of_the_class(folder: Path) -> None:
    judge = VQAScore.from_pretrained(folder, batch_size=3)
    assert judge.engine.limit == 3


RECIPES = sorted((Path(__file__).parents[3] / "recipes" / "judges").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_judge_has_a_recipe_whose_keys_are_known(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.resolved()["verifier"]["name"] == path.stem
    assert f"| `{path.stem}` |" in PAGE


PAGE = (Path(__file__).parents[3] / "tts_verifier" / "verifiers" / "JUDGES.md").read_text(
    encoding="utf-8"
)
