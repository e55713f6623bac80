"""The pages name what exists, link to what is there, and the code that they show runs."""

import ast
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pytest
import yaml
from click.testing import CliRunner
from page_blocks import PAGES, ROOT
from page_commands import COMMANDS
from test_layout import LEVELS

from tts_verifier import Budget, Objective, VerifiedPipeline, Verifier, registry, wrap
from tts_verifier.demo import launch
from tts_verifier.errors import InputError
from tts_verifier.interfaces import ImageDoctorOptions
from tts_verifier.runner.options import RunOptions

README, CONTRIBUTING, CHANGELOG = (
    (ROOT / f"{name}.md").read_text(encoding="utf-8")
    for name in ("README", "CONTRIBUTING", "CHANGELOG")
)


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(page):
    """Returns (mark, language, code) of every fenced block."""
    return re.findall(r"(<!-- [^\n]+ -->\n)?```(\w+)\n(.*?)```", page, re.DOTALL)


def examples(page, title):
    """Returns the Python code below a title."""
    return [code for _, language, code in blocks(page.partition(title)[2]) if language == "python"]


def anchors(page):
    """Returns the addresses of a page's titles, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def shell_commands(page):
    """Returns the words of every line of a shell block that starts one of our commands."""
    text = "".join(code for _, language, code in blocks(page) if language == "sh")
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("tts-")]
    return [w for w in words if w[0] in COMMANDS]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_and_pictures_exist(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        target, _, anchor = link.partition("#")
        if target.startswith(("https:", "http:")):
            continue
        file = path.parent / target if target else path
        assert file.exists(), link
        if anchor:
            assert anchor in anchors(file.read_text("utf-8")), link


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_import_in_the_pages_is_there(path):
    for _, language, code in blocks(path.read_text("utf-8")):
        nodes = ast.walk(ast.parse(code)) if language == "python" else ()
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module.startswith("tts_verifier"):
                module = importlib.import_module(node.module)
                for name in (alias.name for alias in node.names):
                    assert hasattr(module, name) or find_spec(f"{node.module}.{name}"), name


def test_the_tutorial_without_models_runs_as_it_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tutorial = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    before = tutorial.partition("## 4.")[0]
    for command, *words in shell_commands(before):
        # Two of the sixteen prompts are enough.
        few = ["prompts=[a red circle, a cyan ring]"] if command == "tts-run" else []
        done = CliRunner().invoke(COMMANDS[command], [*words, *few], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert (tmp_path / "runs/first/report.html").exists()
    assert (tmp_path / "runs/first/chosen.png").exists()
    (code,) = [code for _, language, code in blocks(before) if language == "python"]
    exec(compile(code, "tutorial.md", "exec"), {})
    assert "a cyan ring" in capsys.readouterr().out


def test_options_inside_sentences_are_those_of_calls():
    calls = [wrap, VerifiedPipeline, Verifier.rerank, Budget, Objective, InputError, launch]
    known = {*RunOptions.__annotations__, *ImageDoctorOptions.__annotations__}
    known |= {name for call in calls for name in inspect.signature(call).parameters}
    for page in [*(ROOT / "docs" / "guides").glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        sentences = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", sentences):
            for name in re.findall(r"(?:^|[(, ])([a-z_]+)=(?=[\w\"{[])", code):
                assert code.startswith(("tts-", "python ")) or name in known, (page.name, code)


def test_the_readme_is_a_landing_page():
    lines = README.splitlines()
    assert len(lines) <= 120
    first_screen = "\n".join(lines[:26])
    for words in (
        "Test-time scaling",
        "text-to-image",
        "arXiv 2510.01010",
        "36 % of its cost",
        "For whom",
        "bestofn.png",
    ):
        assert words in first_screen, words
    for words in (
        "0.8 × semantic alignment + 0.1 × aesthetics + 0.1 ×",
        "## Why not rerank with PickScore?",
        "stable-diffusion-xl-base-1.0",
        'pipe = wrap(pipe, "GYX97/ImageDoctor")',
    ):
        assert words in README, words


def test_the_two_commands_name_what_is_in_the_repository():
    commands = {mark.strip(): code for mark, language, code in blocks(README) if language == "sh"}
    main, test = commands["<!-- main-command -->"], commands["<!-- test-command -->"]
    recipe = shlex.split(main)[-1]
    assert (ROOT / recipe).is_file()
    for command in (main, test):
        assert "-c constraints.txt" in command
    assert "/pytest" in test.split("&&")[-1]


def test_every_recipe_and_command_is_in_the_pages():
    guides = "".join(path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md"))
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert f"recipes/{recipe.name}" in guides, recipe
    reference = (ROOT / "docs" / "reference" / "commands.md").read_text("utf-8")
    for command in re.findall(r"^(tts-\w+) =", (ROOT / "pyproject.toml").read_text(), re.MULTILINE):
        assert f"`{command}" in README, command
        assert f":prog_name: {command}\n" in reference, command


def test_every_strategy_and_verifier_is_in_the_reference():
    parts = (ROOT / "docs" / "reference" / "parts.md").read_text("utf-8")
    listed = set(importlib.import_module("tts_verifier.strategies").__all__)
    for role in ("strategy", "verifier"):
        for target in registry.names(role).values():
            name = target.partition(":")[2].partition(".")[0]
            ours = not target.startswith(("tts_verifier.shapes", "tts_verifier.testing"))
            assert not ours or name in listed or f".{name}\n" in parts, target


def test_every_page_is_in_the_site_once():
    # The tags of MkDocs stand for Python objects; there are none in this file.
    nav = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    for path in PAGES:
        assert nav.count(f"'{name_of(path)}'") == 1, path


def test_messages_that_the_faq_quotes_are_those_of_the_code():
    code = "".join(path.read_text("utf-8") for path in (ROOT / "tts_verifier").rglob("*.py"))
    words = " ".join(re.sub(r"""["']\s+f?["']""", "", code).split())
    faq = (ROOT / "docs" / "faq.md").read_text("utf-8")
    quoted = re.findall(r'^\*\*"(.+?)"[,.]', faq, re.MULTILINE)
    assert len(quoted) >= 6
    for message in quoted:
        for part in filter(None, (part.strip(" .") for part in message.split("…"))):
            assert part in words, part


@pytest.mark.slow
def test_the_site_builds_offline_and_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs_click")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    no_network = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    env = {**os.environ, **no_network, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    home = (tmp_path / "index.html").read_text("utf-8")
    assert not re.findall(r'(?:src|<link[^>]*href)="https?:', home), "the page loads from elsewhere"
    python = (tmp_path / "docs/reference/python/index.html").read_text("utf-8")
    for name in importlib.import_module("tts_verifier").__all__:
        assert f'id="tts_verifier.{name}"' in python, name


@pytest.mark.parametrize("part", ["strategy", "verifier", "generator", "judge"])
def test_the_example_of_adding_a_part_is_short_and_checks_it(part):
    code = examples(CONTRIBUTING, f"## How to add a {part}\n")[0]
    assert len(code.splitlines()) <= 20
    assert ("judge=" if part == "judge" else f"check_{part}(") in code


def test_the_picture_of_the_rooms_is_the_one_that_is_enforced():
    picture = next(code for _, language, code in blocks(CONTRIBUTING) if language == "text")
    levels = []
    for line in picture.splitlines():
        if line[0].isdigit():
            levels.append([])
        levels[-1].append(line[3:].split()[0])
    assert [sorted(rooms) for rooms in levels[::-1]] == [sorted(rooms) for rooms in LEVELS]


def test_the_pictures_of_the_data_flow_name_types_and_are_equal():
    concepts = (ROOT / "docs" / "concepts.md").read_text("utf-8")
    whole, loop = (
        next(code for _, language, code in blocks(page) if language == "text" and code[0] == " ")
        for page in (CONTRIBUTING, concepts)
    )
    assert whole.startswith(loop)
    names = whole.splitlines()[-1].split(" ─> ")
    types = importlib.import_module("tts_verifier.types")
    assert all(hasattr(types, name.strip()) for name in names if name.strip() != "Choice")


def test_every_module_that_moved_is_where_the_changelog_says():
    table = CHANGELOG.partition("### Moved")[2]
    moved = re.findall(r"^\| `([\w.]+)` \| (`.+`) \|$", table, re.MULTILINE)
    assert len(moved) >= 100
    for _, places in moved:
        for place in re.findall(r"`([\w.]+)`", places):
            assert find_spec(f"tts_verifier.{place}"), place
