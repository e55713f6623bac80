"""The commands: what they print, and how they fail."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tts_verifier.errors import CheckpointError
from tts_verifier.interfaces import Verifier
from tts_verifier.testing import FakeGenerator, FakeVerifier


def invoke(command: str, *arguments: object) -> Result:
    module = import_module(f"tts_verifier.cli.{command}")
    return CliRunner().invoke(getattr(module, f"{command}_command"), [str(a) for a in arguments])


def test_a_run_prints_recipe_and_summary_and_leaves_its_folder(tmp_path: Path) -> None:
    done = invoke("run", "fake", "strategy.n=3", "--output", tmp_path / "run")
    assert done.exit_code == 0, done.output
    begins, what, parts, change = done.stdout.splitlines()[:4]
    assert begins == "tts-run fake: reading the recipe and loading its parts"
    assert what == "3 prompts, strategy best_of_n"
    assert parts == "  generator fake, verifier fake, judge fake"
    assert change == "  strategy.n: 3 (was 4)"
    assert "  name: best_of_n" not in done.stdout
    assert max(map(len, done.stdout.partition("chosen images")[0].splitlines())) <= 80
    assert done.stdout.splitlines()[-1] == f"next: tts-report {tmp_path / 'run'}"
    assert "3 prompts, 9 candidates, 0 prompts with a tie for the best" in done.stdout
    assert f"log: {tmp_path / 'run'}" in done.stdout
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names >= {"trials.parquet", "header.json", "chosen", "chosen.png", "images"}
    assert len(pd.read_parquet(tmp_path / "run" / "trials.parquet")) == 9


def test_a_run_writes_a_set_of_each_prompt_where_one_is_asked_for(tmp_path: Path) -> None:
    arguments = ("fake", "strategy.n=3", "--output", tmp_path / "run", "--set", 2)
    done = invoke("run", *arguments)
    assert done.exit_code == 0, done.output
    assert f"sets: {tmp_path / 'run' / 'sets_of_2'}" in done.output
    names = sorted(p.name for p in (tmp_path / "run" / "sets_of_2").iterdir())
    assert names[:2] == ["0000-1.png", "0000-2.png"]
    first, chosen = (tmp_path / "run" / p for p in ("sets_of_2/0000-1.png", "chosen/0000.png"))
    assert first.read_bytes() == chosen.read_bytes()
    assert invoke("run", *arguments[:-1], 0).exit_code == 2


def test_the_whole_recipe_is_shown_on_demand(tmp_path: Path) -> None:
    done = invoke("run", "fake", "strategy.n=3", "--show-recipe", "--output", tmp_path / "run")
    assert "strategy:\n  name: best_of_n\n  n: 3\n" in done.stdout


def test_a_run_that_goes_on_says_so(tmp_path: Path) -> None:
    assert "Resuming" not in invoke("run", "fake", "--output", tmp_path).output
    done = invoke("run", "fake", "strategy.n=5", "--output", tmp_path)
    assert "Resuming: the log of this run holds 12 candidates already." in done.stderr


def test_quiet_json_is_the_result_alone(tmp_path: Path) -> None:
    done = invoke("run", "fake", "--quiet", "--json", "--output", tmp_path)
    assert json.loads(done.stdout)["event"] == "result"
    assert done.stderr == ""


def test_a_quiet_run_prints_nothing(tmp_path: Path) -> None:
    done = invoke("run", "fake", "--quiet", "--output", tmp_path)
    assert (done.exit_code, done.output) == (0, "")


def test_a_run_tells_its_progress_and_result_as_json_lines(tmp_path: Path) -> None:
    done = invoke("run", "fake", "strategy.n=3", "--json", "--output", tmp_path)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["event"] for line in lines[:-1]} == {"progress"}
    last, result = lines[-2:]
    assert (last["phase"], last["done"], last["expected"], last["failed"]) == ("finish", 9, 9, 0)
    assert (result["event"], result["folder"], result["candidates"]) == ("result", str(tmp_path), 9)
    table = pd.read_parquet(tmp_path / "trials.parquet")
    chosen = table[table.chosen].set_index("prompt_id")
    for name, row in result["prompts"].items():
        assert row["chosen"] == chosen.trial_id[name]
        assert row["objective"] == chosen.objective[name]
        assert (tmp_path / row["image"]).exists()


def test_where_there_is_no_terminal_progress_is_plain_lines(tmp_path: Path) -> None:
    done = invoke("run", "fake", "strategy.n=3", "--output", tmp_path)
    assert done.stderr.splitlines()[-1].startswith("finish: 9 of 9 candidates, ")
    assert "\r" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "Error: There is no recipe file and no packaged recipe 'nothing'."),
        (("fake", "strategy.n=0"), "n must be a positive integer, got 0."),
        (("fake", "strategy.m=1"), "unknown key 'strategy.m'. Available: n."),
    ],
)
def test_a_mistake_is_one_line_without_a_traceback(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = invoke("run", *arguments, "--output", tmp_path)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert len(done.stderr.splitlines()) == 1


def test_another_recipes_folder_is_an_error(tmp_path: Path) -> None:
    assert invoke("run", "fake", "--output", tmp_path).exit_code == 0
    done = invoke("run", "fake", "seed=1", "--output", tmp_path)
    assert done.exit_code == 2
    assert "recipe.seed: 0 there, 1 here" in done.stderr


def test_a_run_whose_candidates_all_failed_has_a_status_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FakeGenerator, jobs: object) -> None:
        raise ValueError("no luck")

    monkeypatch.setattr(FakeGenerator, "generate", fail)
    done = invoke("run", "fake", "strategy.n=2", "--output", tmp_path / "run")
    assert done.exit_code == 3
    assert "none of 6 can: ValueError: no luck. The column error of" in done.stderr
    assert "6 candidates, 6 failed" in done.stdout


def test_what_was_set_aside_is_a_line_without_its_place_in_the_code(tmp_path: Path) -> None:
    invoke("run", "fake", "--output", tmp_path)
    (tmp_path / "parts" / "x").touch()
    done = invoke("run", "fake", "--output", tmp_path)
    assert done.exit_code == 0
    assert f"Warning: {tmp_path / 'parts' / 'x'} cannot be used" in done.stderr.splitlines()[0]
    assert ".py" not in done.stderr


def test_what_is_stopped_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: FakeGenerator, jobs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeGenerator, "generate", stop)
    done = invoke("run", "fake", "--output", tmp_path)
    assert done.exit_code == 130
    assert "the same command goes on from there" in done.stderr


def test_ctrl_c_leaves_a_log_that_the_same_command_continues(tmp_path: Path) -> None:
    code = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from tts_verifier.cli.run import run_command
from tts_verifier.errors import CheckpointError
from tts_verifier.interfaces import Verifier
from tts_verifier.testing import FakeGenerator, FakeVerifier
draw = FakeGenerator.generate
def slow(self, jobs):
    time.sleep(0.2)
    return draw(self, jobs)
FakeGenerator.generate = slow
run_command()
"""
    command = [sys.executable, "-c", code, "fake", "strategy.n=40", "--output", str(tmp_path)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    parts = tmp_path / "parts"
    while not parts.exists() or len(list(parts.iterdir())) < 2:
        assert running.poll() is None
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGINT)
    _, shown = running.communicate(timeout=20)
    assert running.returncode == 130
    assert b"the same command goes on from there" in shown
    judged = pd.read_parquet(parts)
    assert 8 <= len(judged) < 120
    done = invoke("run", "fake", "strategy.n=40", "--output", tmp_path)
    assert done.exit_code == 0
    table = pd.read_parquet(tmp_path / "trials.parquet")
    assert len(table) == table.trial_id.nunique() == 120
    assert set(judged.trial_id) <= set(table.trial_id)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{colour}.png" for colour in ("blue", "red")]
    for path in paths:
        Image.new("RGB", (4, 4), path.stem).save(path)
    return paths


def test_scores_are_a_table_best_first(pictures: list[Path]) -> None:
    done = invoke("score", *pictures, "--prompt", "x", "--verifier", "fake")
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()]
    names = ["image", "objective", "semantic_alignment", "aesthetics", "plausibility", "overall"]
    assert rows == [
        names,
        [str(pictures[1]), "0.800", "1.000", "0.000", "0.000", "0.333"],
        [str(pictures[0]), "0.100", "0.000", "0.000", "1.000", "0.333"],
    ]


def test_damaged_metadata_of_a_picture_is_no_noise(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    Image.new("RGB", (8, 8), "red").save(file)
    # Two samples per pixel's number instead of one, of which Pillow warns.
    content = file.read_bytes()
    damaged = content.replace(b"\x15\x01\x03\x00\x01\x00", b"\x15\x01\x03\x00\x02\x00")
    assert damaged != content
    file.write_bytes(damaged)
    done = invoke("score", file, "--prompt", "x", "--verifier", "fake")
    assert done.exit_code == 0
    assert "Warning" not in done.output


def test_scores_are_json_lines(pictures: list[Path]) -> None:
    arguments = ("--prompt", "x", "--verifier", "fake", "--format", "jsonl")
    done = invoke("score", *pictures, *arguments)
    first = json.loads(done.stdout.splitlines()[0])
    assert first == {
        "image": str(pictures[1]),
        "objective": 0.8,
        "semantic_alignment": 1.0,
        "aesthetics": 0.0,
        "plausibility": 0.0,
        "overall": pytest.approx(1 / 3),
        "boxes": [[0.0, 0.0, 2.0, 4.0]],
        "reply": "semantic_alignment=1.000, aesthetics=0.000, plausibility=0.000, overall=0.333",
    }
    quick = invoke("score", *pictures, *arguments, "--detail", "score")
    assert json.loads(quick.stdout.splitlines()[0])["boxes"] == []


def test_an_unusable_score_is_null_in_json(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsure(name: str) -> FakeVerifier:
        return FakeVerifier(lambda image, prompt: {"overall": float("nan")})

    monkeypatch.setattr(Verifier, "from_pretrained", unsure)
    arguments = ("--prompt", "x", "--verifier", "an/unsure", "--format", "jsonl")
    line = json.loads(invoke("score", *pictures, *arguments).stdout.splitlines()[0])
    assert (line["overall"], line["objective"]) == (None, None)


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no")
    done = invoke("score", tmp_path / "bad.png", "--prompt", "x", "--verifier", "fake")
    assert done.exit_code == 2
    assert "bad.png is not" in done.stderr


def test_a_verifier_that_is_not_there_is_named(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise CheckpointError(f"There is no {name}.")

    monkeypatch.setattr(Verifier, "from_pretrained", missing)
    done = invoke("score", *pictures, "--prompt", "x", "--verifier", "no/such/folder")
    assert (done.exit_code, done.stderr) == (2, "Error: There is no no/such/folder.\n")
