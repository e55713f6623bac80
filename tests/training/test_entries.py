"""`tts-train` and its configs: what is wrong in a config is said with its line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tts_verifier.cli.train import train_command
from tts_verifier.errors import InputError, RecipeError
from tts_verifier.recipe import recipe_folder
from tts_verifier.training import entries
from tts_verifier.training.entries import ENTRIES, run_entry
from tts_verifier.training.richhf import miniature

CONFIG = "output: out\nsizes:\n  test: 2\npart: 2\nprocesses: 1\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG)
    return path


def test_an_entry_runs_with_its_config_and_overrides(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    run_entry("miniature-richhf", config, [f"output={out}", "sample_share=0", "sizes.test=3"])
    assert len(list((out / "images" / "test").iterdir())) == 3


def test_the_tilde_is_home_in_every_path(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[dict[str, Any]] = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(entries, "call", lambda _, values: called.append(values))
    run_entry("miniature-richhf", "~/mine.yaml", ["output=~/out"])
    assert called[0]["output"] == str(tmp_path / "out")
    with pytest.raises(RecipeError, match="must begin with the home folder of a user"):
        run_entry("miniature-richhf", config, ["output=~nobody-of-that-name/out"])


def test_the_address_of_an_object_store_is_no_folder(config: Path) -> None:
    with pytest.raises(RecipeError, match=r"output.*on a file system, got the address 's3://b"):
        run_entry("miniature-richhf", config, ["output=s3://bucket/data"])


def test_a_pipe_for_a_config_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mine.yaml")
    with pytest.raises(RecipeError, match="a regular file is needed, this is a named pipe"):
        run_entry("miniature-richhf", tmp_path / "mine.yaml")


def test_every_entry_has_a_packaged_config_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    for entry in ENTRIES:
        called: list[dict[str, Any]] = []
        monkeypatch.setattr(entries, "call", lambda f, values, to=called: to.append(values))
        run_entry(entry, entry)
        assert called
        assert (recipe_folder() / "training" / f"{entry}.yaml").is_file()


def test_the_help_lists_every_entry() -> None:
    assert f"Entries: {', '.join(ENTRIES)}." in " ".join((train_command.help or "").split())


def test_both_modes_is_a_config_of_stage_2(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[dict[str, Any]] = []
    monkeypatch.setattr(entries, "call", lambda function, values: called.append(values))
    run_entry("cold-start-2", "both-modes")
    assert called[0]["data"] == "miniature"


def test_the_packaged_miniature_has_the_sizes_of_richhf(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[dict[str, Any]] = []
    monkeypatch.setattr(entries, "call", lambda function, values: called.append(values))
    run_entry("miniature-richhf", "miniature-richhf")
    assert called[0]["sizes"] == dict(miniature.SIZES)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampel_share=1"], r"unknown key 'sampel_share'\. Did you mean 'sample_share'"),
        (["processes=1000000"], "processes must be at most [0-9]+, 32 for each core"),
        (["part=many"], r"override 'part=many': part must be a whole number, got 'many'"),
        (["part=true"], "part must be a whole number"),
        (["sizes=[1]"], "sizes must be"),
        (["sizes.test=x"], "sizes must be"),
        (["sizes.tset=1"], r"override 'sizes.tset=1'.*sizes must name splits|sizes must name"),
        (["sample_share=2"], r"override 'sample_share=2': sample_share must be in \[0, 1\]"),
        (["part"], "must look like"),
    ],
)
def test_a_mistake_in_a_config_is_named_with_its_place(
    config: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        run_entry("miniature-richhf", config, overrides)


def test_a_mistake_in_the_file_is_named_with_its_line(config: Path) -> None:
    config.write_text(CONFIG + "colour: red\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml:6: unknown key 'colour'"):
        run_entry("miniature-richhf", config)
    config.write_text(CONFIG.replace("part: 2", "part: 0"))
    with pytest.raises(RecipeError, match=r"mine\.yaml:4: part must be at least 1"):
        run_entry("miniature-richhf", config)


def test_what_a_config_lacks_is_named(config: Path) -> None:
    config.write_text("seed: 1\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml: the config needs output"):
        run_entry("miniature-richhf", config)


def test_an_input_error_of_no_single_key_stays_as_it_is(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(function: Any, values: Any) -> None:
        raise InputError("Nothing fits.")

    monkeypatch.setattr(entries, "call", refuse)
    with pytest.raises(InputError, match=r"^Nothing fits\.$"):
        run_entry("miniature-richhf", config)


@pytest.mark.parametrize(
    ("entry", "name", "message"),
    [
        ("miniature", "x", r"Unknown entry 'miniature'\. Did you mean 'miniature-richhf'"),
        ("miniature-richhf", "x", r"no packaged config 'x'\. Available: .*miniature-richhf"),
        ("miniature-richhf", "x.yaml", r"The config x\.yaml cannot be read"),
    ],
)
def test_an_entry_or_config_that_is_not_there_is_named(entry: str, name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run_entry(entry, name)


def test_the_module_runs_entries_too(config: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tts_verifier.training", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "Entries: cold-start-1, " in run().stderr
    failed = run("miniature-richhf", str(config), "part=0")
    assert (failed.returncode, failed.stderr) == (
        2,
        "Error: override 'part=0': part must be at least 1, got 0.\n",
    )
