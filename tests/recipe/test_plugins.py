"""docs/plugins.md: its three templates run, continue, and run in shards; its commands work."""

import re
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from tts_verifier.cli.run import run_command
from tts_verifier.cli.score import score_command
from tts_verifier.recipe import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- ([^\n]+) -->\n```(\w+)\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for mark, _, code in BLOCKS:
        if mark.startswith("file: "):
            (tmp_path / mark.removeprefix("file: ")).write_text(code)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(run_command, [str(a) for a in arguments])


def test_the_commands_of_the_page_run(folder: Path) -> None:
    (commands,) = (code for _, kind, code in BLOCKS if kind == "sh")
    for line in commands.splitlines():
        name, *arguments = shlex.split(line)
        assert name == "tts-run"
        done = run(*arguments)
        assert done.exit_code == 0, done.output
    assert "size: a whole number, default 8\n      pixels along a side." in done.stdout
    table = pd.read_parquet("runs/my_recipe/trials.parquet")
    assert set(table.prompt_id) == {"0000", "0001"}
    assert len(table) <= 32


def test_the_parts_of_the_page_pass_the_checks(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    (code,) = (code for mark, kind, code in BLOCKS if "checked by" in mark and kind == "python")
    found: dict[str, object] = {}
    # The three checks raise where a part breaks a rule.
    exec(compile(code, "docs/plugins.md", "exec"), found)
    assert {"check_generator", "check_strategy", "check_verifier"} <= set(found)
    for name in ("my_generator", "my_strategy", "my_verifier"):
        del sys.modules[name]


def test_a_run_of_own_parts_continues_and_its_ids_follow_the_settings(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ids(output: str) -> set[str]:
        return set(pd.read_parquet(f"{output}/trials.parquet").trial_id)

    again = ("my_recipe.yaml", "strategy.enough=2", "strategy.n=3", "--output")
    assert run(*again, "one").exit_code == 0
    done = run(*again, "one")
    assert "Resuming: the log of this run holds 6 candidates already." in done.stderr
    other = run(*again, "two", "generator.size=8")
    assert other.exit_code == 0
    assert len(ids("one")) == 6
    assert not ids("one") & ids("two")
    # From another folder, and by another path to the same parts.
    monkeypatch.chdir("/")
    recipe = load_recipe(folder / "my_recipe.yaml")
    assert recipe.resolved()["generator"]["name"] == "my_generator.py:Blocks"
    moved = run(folder / "my_recipe.yaml", *again[1:-1], "--output", folder / "one")
    assert moved.exit_code == 0, moved.output
    assert "Resuming" in moved.stderr


def test_other_commands_take_an_import_path_too(folder: Path) -> None:
    assert run("my_recipe.yaml", "strategy.n=1").exit_code == 0
    image = next(Path("runs/my_recipe/images").rglob("*.png"))
    arguments = [str(image), "--prompt", "x", "--verifier", "my_verifier.py:Brightness"]
    done = CliRunner().invoke(score_command, arguments)
    assert done.exit_code == 0, done.output
    assert "bright" in done.stdout.splitlines()[0]


@pytest.mark.slow
def test_workers_import_the_parts_themselves(folder: Path) -> None:
    done = run("my_recipe.yaml", "strategy.n=2", "--parallel", "2")
    assert done.exit_code == 0, done.output
    assert "2 prompts, " in done.stdout
