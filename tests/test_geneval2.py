"""The benchmark of prompt sets, dry: on fakes, and on random weights of the real architectures."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_families
from pyarrow import parquet

from tts_verifier.types import Cost, Draw, Prompt, Trial

ROOT = Path(__file__).parent.parent
BENCHMARK = SimpleNamespace(**runpy.run_path(str(ROOT / "examples/benchmarks/geneval2.py")))
SETS = {
    "geneval2_data.jsonl": "".join(
        json.dumps({"prompt": p, "atom_count": 3, "vqa_list": [["Is it?", "Yes"]], "skills": []})
        + "\n"
        for p in ("four cats", "a red bus", "a dog")
    ),
    "PartiPrompts.tsv": "Prompt\tCategory\tChallenge\tNote\nfour cats\tAnimals\tQuantity\t\n"
    "a red bus\tVehicles\tBasic\t\na dog\tAnimals\tBasic\t\n",
    "DrawBench.csv": "Prompts,Category\nfour cats,Counting\na red bus,Colors\na dog,Colors\n",
    "evaluation_metadata.jsonl": '{"tag": "counting", "include": [], "prompt": "four cats"}\n'
    '{"tag": "colors", "include": [], "prompt": "a red bus"}\n'
    '{"tag": "colors", "include": [], "prompt": "a dog"}\n',
}


@pytest.mark.parametrize("name", SETS)
def test_a_prompt_set_gives_a_table(name, tmp_path, capsys):
    (tmp_path / name).write_text(SETS[name], encoding="utf-8")
    out = tmp_path / "out"
    arguments = [f"prompts={tmp_path / name}", "judge.name=fake", "--n", "4"]
    cases = ["--only", "best_of_n,adaptive", "--enough", "semantic_alignment=0.7"]
    BENCHMARK.main([str(out), "fake", *arguments, *cases])
    rows = {row["case"]: row for row in parquet.read_table(out / "table.parquet").to_pylist()}
    assert [*rows] == ["best of 1", "best of 2", "best of 4", "adaptive"]
    assert all(row["prompts"] == 3 for row in rows.values())
    assert rows["adaptive"]["images"] <= 4
    table = (out / "table.md").read_text("utf-8")
    assert table in capsys.readouterr().out
    # The third line of the second table is the first case.
    by_category = table.split("\n\n")[1:]
    assert len(by_category) == (name != "geneval2_data.jsonl")
    assert all(part.splitlines()[2].startswith("| best of 1 |") for part in by_category)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("recipe", "family", "side"), [("sd35", "sd3", 16), ("sdxl", "sdxl", 32), ("flux", "flux", 16)]
)
def test_a_recipe_of_a_real_pipeline_runs_on_random_weights(recipe, family, side, tmp_path, capsys):
    tiny_families.FAMILIES[family](tmp_path / "words").pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "set.tsv").write_text(SETS["PartiPrompts.tsv"], encoding="utf-8")
    small = [f"generator.height={side}", f"generator.width={side}", "generator.steps=4"]
    small += ["generator.call.max_sequence_length=16"] if recipe == "flux" else []
    models = [f"generator.model={tmp_path / 'model'}", "verifier={name: fake}", "judge.name=fake"]
    arguments = [f"prompts={tmp_path / 'set.tsv'}", *models, *small, "--n", "2", "--limit", "2"]
    BENCHMARK.main([str(tmp_path / "out"), recipe, *arguments])
    rows = parquet.read_table(tmp_path / "out" / "table.parquet").to_pylist()
    cases = {row["case"] for row in rows}
    assert cases >= {"best of 2", "inpaint_reroll", "successive_halving", "seed_beam"}
    assert capsys.readouterr().out.count("2 prompts") == 5


def test_the_same_command_runs_nothing_twice(tmp_path):
    (tmp_path / "set.csv").write_text(SETS["DrawBench.csv"], encoding="utf-8")
    arguments = [f"prompts={tmp_path / 'set.csv'}", "judge.name=fake", "--only", "best_of_n"]
    for _ in range(2):
        BENCHMARK.main([str(tmp_path / "out"), "fake", *arguments, "--n", "2", "--limit", "1"])
    trials = parquet.read_table(tmp_path / "out" / "best_of_n" / "trials.parquet")
    assert trials.num_rows == 2
    BENCHMARK.main([str(tmp_path / "out"), "--pass-at", "0.5"])
    assert "share with semantic_alignment >= 0.5" in (tmp_path / "out" / "table.md").read_text()


def trial(place: int, objective: float, judged: float, seconds: float, prompt: str = "p") -> Trial:
    return Trial(
        f"{prompt}{place}", Prompt(prompt, prompt), 0, Draw(place), 1.0, None, objective,
        Cost(generate_seconds=seconds), judge={"good": judged},
    )  # fmt: skip


def test_a_case_is_compared_with_the_best_of_n_at_its_seconds():
    nan = float("nan")
    trials = {
        "p": [trial(0, 0.1, 0.2, 1), trial(1, 0.9, 0.6, 1)],
        "unjudged": [trial(0, 0.1, nan, 1, "unjudged"), trial(1, 0.2, nan, 1, "unjudged")],
    }
    pool = BENCHMARK.Pool(trials, "good", None)
    # The best of one is 0.4 in the mean, the best of two 0.6; 1.5 seconds lie between.
    assert [pool.at("p", n) for n in (1, 1.5, 2)] == pytest.approx([0.4, 0.5, 0.6])
    row = BENCHMARK.case_row("case", {"p": [trial(5, 0.5, 0.8, 1.5)]}, pool, "good", None)
    assert (row["prompts"], row["n_at_seconds"], row["beyond"]) == (1, 1.5, False)
    assert row["gain"] == pytest.approx(0.3)
    row = BENCHMARK.case_row("case", {"p": [trial(5, 0.5, 0.8, 9)]}, pool, "good", None)
    assert row["beyond"]
    assert "not compared" in BENCHMARK.text_of([row], "good")


def test_a_prompt_without_an_image_counts_as_not_passed():
    trials = {"p": [trial(0, 0.1, 0.9, 1), trial(1, float("nan"), 0.9, 1)]}
    pool = BENCHMARK.Pool(trials, "good", 0.5)
    # One of the two draws cannot be chosen.
    assert np.allclose(pool.curves["p"], [0.5, 1.0])
    failed = {"p": [trial(5, float("nan"), 0.9, 1)]}
    assert BENCHMARK.case_row("case", failed, pool, "good", 0.5)["value"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fake", "judge=null"], "A comparison needs a held-out judge, this recipe names none."),
        (["fake", "judge.name=fake", "--only", "nothing"], "no case 'nothing'; there are best_of"),
        ([], "needs the case best_of_n, with which others are compared. Run it."),
    ],
)
def test_what_cannot_be_compared_is_said(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        BENCHMARK.main([str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err


def test_a_score_that_the_judge_does_not_give_is_said(tmp_path, capsys):
    arguments = ["fake", "judge.name=fake", "--only", "best_of_n", "--n", "1", "--limit", "1"]
    with pytest.raises(SystemExit, match="2"):
        BENCHMARK.main([str(tmp_path / "out"), *arguments, "--score", "beauty"])
    assert "The judge gave no score beauty; it gave ['semantic_al" in capsys.readouterr().err
