"""README, CONTRIBUTING and CHANGELOG name what exists, and the code that they show runs."""

import ast
import importlib
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_layout import LEVELS

ROOT = Path(__file__).parent.parent
README, CONTRIBUTING, CHANGELOG = (
    (ROOT / f"{name}.md").read_text(encoding="utf-8")
    for name in ("README", "CONTRIBUTING", "CHANGELOG")
)


def blocks(page):
    """Returns (mark, language, code) of every fenced block."""
    return re.findall(r"(<!-- [\w-]+ -->\n)?```(\w+)\n(.*?)```", page, re.DOTALL)


def examples(page, title):
    """Returns the Python code below a title that is marked as running."""
    return [code for mark, _, code in blocks(page.partition(title)[2]) if "runs" in mark]


PYTHON = [code for _, kind, code in blocks(README + CONTRIBUTING) if kind == "python"]


def test_links_and_pictures_exist():
    links = [t for t in re.findall(r"\]\(([^)]+)\)", README) if not t.startswith("https:")]
    assert len(links) >= 2
    for target in links:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("code", PYTHON)
def test_every_import_in_the_pages_is_there(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or find_spec(f"{node.module}.{name}"), name


def test_the_example_of_the_miniature_world_runs(capsys):
    marked = [code for mark, _, code in blocks(README) if "runs" in mark]
    assert len(marked) == 1
    exec(compile(marked[0], "README.md", "exec"), {})
    assert " True 1.0 ()" in capsys.readouterr().out


def test_the_two_commands_name_what_is_in_the_repository():
    commands = {mark.strip(): code for mark, language, code in blocks(README) if language == "sh"}
    main, test = commands["<!-- main-command -->"], commands["<!-- test-command -->"]
    recipe = shlex.split(main)[-1]
    assert (ROOT / recipe).is_file()
    for command in (main, test):
        assert "-c constraints.txt" in command
    assert "/pytest" in test.split("&&")[-1]


def test_every_recipe_and_command_is_in_the_readme():
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        if recipe.stem != "fake":
            assert f"recipes/{recipe.name}" in README, recipe
    for command in re.findall(r"^(tts-\w+) =", (ROOT / "pyproject.toml").read_text(), re.MULTILINE):
        assert f"`{command}" in README, command


@pytest.mark.parametrize("part", ["strategy", "verifier", "generator", "judge"])
def test_the_example_of_adding_a_part_is_short_and_runs(part):
    code = examples(CONTRIBUTING, f"## How to add a {part}\n")[0]
    assert len(code.splitlines()) <= 20
    assert ("judge=" if part == "judge" else f"check_{part}(") in code
    exec(compile(code, "CONTRIBUTING.md", "exec"), {})


def test_the_picture_of_the_rooms_is_the_one_that_is_enforced():
    picture = next(code for _, language, code in blocks(CONTRIBUTING) if language == "text")
    levels = []
    for line in picture.splitlines():
        if line[0].isdigit():
            levels.append([])
        levels[-1].append(line[3:].split()[0])
    assert [sorted(rooms) for rooms in levels[::-1]] == [sorted(rooms) for rooms in LEVELS]


def test_every_module_that_moved_is_where_the_changelog_says():
    table = CHANGELOG.partition("### Moved")[2]
    moved = re.findall(r"^\| `([\w.]+)` \| (`.+`) \|$", table, re.MULTILINE)
    assert len(moved) >= 100
    for _, places in moved:
        for place in re.findall(r"`([\w.]+)`", places):
            assert find_spec(f"tts_verifier.{place}"), place
