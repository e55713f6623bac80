"""What commands say of themselves and of the parts: --version, -h, --list, --explain."""

from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

import tts_verifier
from tts_verifier.registry import BUILT_IN, recipe_folder

COMMANDS = [
    p.stem
    for p in Path(tts_verifier.__file__).parent.glob("cli/*.py")
    if "def " + p.stem + "_command(" in p.read_text()
]


def invoke(command: str, *arguments: str) -> Result:
    module = import_module(f"tts_verifier.cli.{command}")
    return CliRunner().invoke(getattr(module, f"{command}_command"), arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_version_and_a_short_help(command: str) -> None:
    version = invoke(command, "--version")
    assert version.output == f"tts-{command}, version {tts_verifier.__version__}\n"
    assert invoke(command, "-h").output == invoke(command, "--help").output
    wrong = invoke(command, "--nothing")
    assert wrong.exit_code == 2
    assert wrong.stderr.endswith(f" See tts-{command} -h.\n")
    assert len(wrong.stderr.splitlines()) == 1


def test_the_list_has_a_line_about_everything() -> None:
    done = invoke("run", "--list")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(cell_len, lines)) <= 80
    about = {}
    for line in lines:
        if line.startswith("  "):
            name, _, text = line.strip().partition("  ")
            about.setdefault(name, []).append(text.strip())
    names = {name for role in BUILT_IN.values() for name in role}
    recipes = {path.stem for path in recipe_folder().glob("*.yaml")}
    assert set(about) == names | recipes
    assert all(text for texts in about.values() for text in texts)
    assert "Generate 8 candidates for each prompt" in about["bestofn"][0]
    assert about["best_of_n"] == ["Draws `n` independent candidates."]


def test_a_part_is_explained_with_types_defaults_and_meaning() -> None:
    done = invoke("run", "--explain", "strategy.adaptive")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == "strategy.adaptive"
    assert "  strategy: Strategy or a table, required\n" in done.stdout
    assert (
        "  cost: a number, default 0.0\n"
        "      the cost of one more draw, in units of the objective; the search ends"
    ) in done.stdout
    assert max(map(cell_len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("best_of_n", "n: a whole number"),
        ("budget", "verifier_calls: a whole number or none, default None\n      Verdicts."),
        ("objective", "weights: "),
        ("parallel", "Processes that run shards."),
        ("judge.fake", "verifier.fake"),
        ("generator.fake", "batch_size: a whole number"),
        ("rewriter.shapes", "It has no arguments."),
    ],
)
def test_every_kind_of_part_is_explained(what: str, expected: str) -> None:
    done = invoke("run", "--explain", what)
    assert done.exit_code == 0, done.output
    assert expected in done.stdout


def test_options_of_a_typed_table_are_explained() -> None:
    shown = invoke("run", "--explain", "verifier.openai").stdout
    assert "base_url" in shown
    arguments = shown.partition("In a recipe:")[2]
    titles = [line for line in arguments.splitlines() if line[:3].strip() and ": " in line]
    assert len(titles) >= 3


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("strategy.adaptiv", "Unknown strategy 'adaptiv'. Did you mean 'adaptive'?"),
        ("strategy", "strategy is not one part: give one of strategy.adaptive, strategy.best_of_n"),
        ("fake", "fake is not one part: give one of comparer.fake, generator.fake"),
        ("strateggy.adaptive", "There is no part 'strateggy.adaptive'. Did you mean 'strategy.ad"),
        ("strategy.mine.py:X", "must name a file that exists"),
    ],
)
def test_what_is_no_part_is_one_line(what: str, message: str) -> None:
    done = invoke("run", "--explain", what)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_part_of_ones_own_is_explained(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "class Own:\n"
        '    """Draws nothing.\n\n    Args:\n        hope: how much.\n    """\n'
        "    def __init__(self, hope: float, n=3): ...\n"
        "    def propose(self, task, history): return []\n"
    )
    shown = invoke("run", "--explain", f"strategy.{tmp_path}/own.py:Own").stdout
    assert "  Draws nothing.\n" in shown
    assert "  hope: a number, required\n      how much.\n  n: anything, default 3\n" in shown


@pytest.mark.parametrize(
    "annotation", ['"how many"', "[int]", '"Nothing"', '"Path.Nothing"', '"Unpack[Options]"']
)
def test_annotations_that_cannot_be_resolved_check_nothing(annotation: str, tmp_path: Path) -> None:
    stars = "**" if "Options" in annotation else ""
    (tmp_path / "odd.py").write_text(
        "from pathlib import Path\n"
        "from typing import TypedDict, Unpack\n"
        "class Options(TypedDict, total=False):\n"
        '    n: "Nothing"\n'
        "class Odd:\n"
        f"    def __init__(self, {stars}n: {annotation}): ...\n"
        "    def propose(self, task, history): return []\n"
    )
    done = invoke("run", "--explain", f"strategy.{tmp_path}/odd.py:Odd")
    assert done.exit_code == 0, done.output
    assert "  n: " in done.stdout
