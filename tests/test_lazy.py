"""Importing the package, and printing a command's help, loads no heavy library."""

import inspect
import subprocess
import sys
from collections.abc import Iterator

import pytest

import tts_verifier
from tts_verifier.registry import BUILT_IN

LIBRARIES = ["torch", "transformers", "diffusers", "scipy", "pyarrow", "pandas", "jinja2"]
HEAVY = f"set({LIBRARIES}) & set(sys.modules)"


def fresh(code: str) -> str:
    """Runs code in a new process; returns its output and the heavy libraries it loaded."""
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(sorted({HEAVY}))"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert fresh("import tts_verifier; tts_verifier.Objective, tts_verifier.Verifier") == "[]\n"


@pytest.mark.slow
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
    "command", ["run", "score", "replay", "report", "evaluate", "train", "serve", "demo"]
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


def test_every_public_name_is_there_and_dir_shows_nothing_else() -> None:
    assert tts_verifier.__all__ == sorted(tts_verifier.__all__)
    for name in tts_verifier.__all__:
        assert getattr(tts_verifier, name) is not None
    assert set(dir(tts_verifier)) == {*tts_verifier.__all__, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tts_verifier.nothing  # noqa: B018


def test_every_part_that_recipes_can_name_is_public_but_the_fakes() -> None:
    for role, builders in BUILT_IN.items():
        for name, place in builders.items():
            attribute = place.partition(":")[2].partition(".")[0]
            assert name == "fake" or attribute in tts_verifier.__all__, f"{role} {name}"


def test_a_misspelt_name_gets_a_suggestion() -> None:
    code = "import tts_verifier; tts_verifier.Adaptve"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("has no attribute 'Adaptve'. Did you mean: 'Adaptive'?\n")


def documented(owner: type) -> Iterator[tuple[str, object]]:
    """The public methods and properties that a class of this package defines."""
    for kind in owner.__mro__:
        if kind.__module__.startswith("tts_verifier."):
            for name, value in vars(kind).items():
                if not name.startswith("_") and callable(value := getattr(value, "fget", value)):
                    yield f"{kind.__name__}.{name}", value


@pytest.mark.parametrize("name", tts_verifier.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    part = getattr(tts_verifier, name)
    assert ".training." not in getattr(part, "__module__", "")
    assert inspect.getdoc(part)
    if inspect.isclass(part):
        assert not [member for member, value in documented(part) if not inspect.getdoc(value)]


def keywords(part: object) -> list[str]:
    """Names of `**keywords` of any type."""
    if not inspect.isfunction(part := getattr(part, "__func__", part)):
        return []
    found = inspect.signature(part).parameters.values()
    return [p.name for p in found if p.kind is p.VAR_KEYWORD and p.annotation == "Any"]


@pytest.mark.parametrize("name", tts_verifier.__all__)
def test_no_public_constructor_or_function_takes_options_of_any_type(name: str) -> None:
    part = getattr(tts_verifier, name)
    assert not keywords(part.__init__ if inspect.isclass(part) else part)
    if hasattr(part, "from_pretrained"):
        assert not keywords(part.from_pretrained)
