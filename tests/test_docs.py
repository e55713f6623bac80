"""The README says what is there, and what it shows runs."""

import ast
import importlib
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(<!-- [\w-]+ -->\n)?```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for _, language, code in BLOCKS if language == "python"]


def test_links_and_pictures_exist():
    links = [t for t in re.findall(r"\]\(([^)]+)\)", README) if not t.startswith("https:")]
    assert len(links) >= 2
    for target in links:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("code", PYTHON)
def test_every_import_in_the_readme_is_there(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or find_spec(f"{node.module}.{name}"), name


def test_what_is_marked_as_running_runs(capsys):
    marked = [code for mark, _, code in BLOCKS if "runs" in mark]
    assert len(marked) == 1
    exec(compile(marked[0], "README.md", "exec"), {})
    assert " True 1.0 ()" in capsys.readouterr().out


def test_the_two_commands_name_what_is_in_the_repository():
    commands = {mark.strip(): code for mark, language, code in BLOCKS if language == "sh"}
    main, test = commands["<!-- main-command -->"], commands["<!-- test-command -->"]
    recipe = shlex.split(main)[-1]
    assert (ROOT / recipe).is_file()
    for command in (main, test):
        assert "-c constraints.txt" in command
    assert test.strip().endswith("pytest")


def test_every_recipe_and_command_is_in_the_readme():
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        if recipe.stem != "fake":
            assert f"recipes/{recipe.name}" in README, recipe
    for command in re.findall(r"^(tts-\w+) =", (ROOT / "pyproject.toml").read_text(), re.MULTILINE):
        assert f"`{command}" in README, command
