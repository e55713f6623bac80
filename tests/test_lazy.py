"""Importing the package, and printing a command's help, loads no heavy library."""

import subprocess
import sys

import pytest

import tts_verifier

LIBRARIES = ["torch", "transformers", "diffusers", "scipy", "pyarrow", "pandas", "jinja2"]
HEAVY = f"set({LIBRARIES}) & set(sys.modules)"


def fresh(code: str) -> str:
    """Runs code in a new process; returns its output and the heavy libraries it loaded."""
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(sorted({HEAVY}))"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert fresh("import tts_verifier; tts_verifier.Objective, tts_verifier.Verifier") == "[]\n"


def test_importing_the_package_imports_nothing_of_training() -> None:
    code = """
import tts_verifier
for name in tts_verifier.__all__:
    getattr(tts_verifier, name)
print([name for name in sys.modules if name.startswith("tts_verifier.training")])
"""
    assert fresh(code).startswith("[]\n")


def test_running_on_fakes_needs_no_torch() -> None:
    code = """
from tts_verifier import BestOfN, run
from tts_verifier.testing import FakeGenerator, FakeVerifier
run(['a red circle'], FakeGenerator(), FakeVerifier(), BestOfN(2))
"""
    assert "torch" not in fresh(code)


@pytest.mark.parametrize(
    "command", ["run", "score", "replay", "report", "evaluate", "train", "serve"]
)
def test_help_is_quick_because_it_loads_nothing_heavy(command: str) -> None:
    code = f"""
from tts_verifier.cli.{command} import {command}_command
try:
    {command}_command(['--help'])
except SystemExit as end:
    assert end.code == 0
"""
    shown = fresh(code)
    assert shown.endswith("[]\n")
    assert "Example:" in shown


def test_a_run_says_something_before_it_imports_anything_heavy() -> None:
    code = """
from tts_verifier.cli.run import run_command
sys.modules["tts_verifier.recipe"] = None  # what would be imported next
try:
    run_command(["bestofn"])
except ImportError:
    pass
"""
    assert fresh(code) == "tts-run bestofn: reading the recipe and loading its parts\n[]\n"


def test_help_imports_only_the_commands_of_the_package() -> None:
    code = """
import tts_verifier.cli.run
print(sorted(name for name in sys.modules if name.startswith("tts_verifier.")))
"""
    expected = ["tts_verifier.cli", "tts_verifier.cli.run", "tts_verifier.cli.shared"]
    assert fresh(code).startswith(f"{expected}\n")


def test_every_public_name_is_there() -> None:
    assert tts_verifier.__all__ == sorted(tts_verifier.__all__)
    for name in tts_verifier.__all__:
        assert getattr(tts_verifier, name) is not None
    assert set(tts_verifier.__all__) <= set(dir(tts_verifier))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tts_verifier.nothing  # noqa: B018
