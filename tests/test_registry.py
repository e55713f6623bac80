"""Names become builders, lazily; unknown names get help."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tts_verifier import registry
from tts_verifier.errors import InputError, RecipeError
from tts_verifier.recipe import load_recipe
from tts_verifier.strategies.adaptive import Adaptive
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeVerifier
from tts_verifier.verifiers.load import load_verifier


def test_a_name_is_the_class_that_it_stands_for() -> None:
    assert registry.builder("strategy", "best_of_n") is BestOfN
    assert registry.builder("verifier", "fake") is FakeVerifier


def test_a_name_nearly_right_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError) as caught:
        registry.builder("strategy", "best-of-n")
    everything = ", ".join(sorted(registry.BUILT_IN["strategy"]))
    assert str(caught.value) == (
        f"Unknown strategy 'best-of-n'. Did you mean 'best_of_n'? Available: {everything}."
    )


def test_a_name_far_off_gets_the_list() -> None:
    with pytest.raises(RecipeError, match=r"'xyz'\. Available: diffusers, fake, simulated\.$"):
        registry.builder("generator", "xyz")


def test_an_installed_plugin_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = (
        EntryPoint("verifier.mine", "tts_verifier.testing:FakeVerifier.verify", registry.GROUP),
        EntryPoint("verifier.gone", "no_such_module:Thing", registry.GROUP),
        EntryPoint("verifier.fake", "no_such_module:Impostor", registry.GROUP),
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: plugins)
    assert registry.builder("verifier", "mine") is FakeVerifier.verify
    assert registry.builder("verifier", "fake") is FakeVerifier, "a plug-in replaces no built-in"
    assert "mine" not in registry.names("generator")
    with pytest.raises(RecipeError, match=r"'gone' is no_such_module:Thing, which fails"):
        registry.builder("verifier", "gone")


OWN = """
from beside import AT_MOST
from tts_verifier.strategies.best_of_n import BestOfN
class Own(BestOfN):
    def __init__(self, n: int = AT_MOST):
        super().__init__(n)
    @classmethod
    def with_three(cls):
        return cls(3)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.path", [*sys.path])
    place = tmp_path / "recipes"
    place.mkdir()
    (place / "own.py").write_text(OWN)
    (place / "beside.py").write_text("AT_MOST = 5\n")
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    monkeypatch.chdir(tmp_path)
    return place


def test_an_import_path_names_a_class_of_a_file(folder: Path) -> None:
    own = registry.builder("strategy", "recipes/own.py:Own")
    assert own().n == 5, "a file may import what lies beside it"
    assert registry.builder("strategy", f"{folder}/own.py:Own") is own, "it is executed once"
    with registry.plugins_beside(folder):
        assert registry.builder("strategy", "own.py:Own") is own
    assert registry.builder("strategy", "recipes/own.py:Own.with_three")().n == 3
    with pytest.raises(RecipeError, match=r"must name a file that exists, and own\.py is in none"):
        registry.builder("strategy", "own.py:Own")


def test_an_edited_file_is_executed_again(folder: Path) -> None:
    before = registry.builder("strategy", "recipes/own.py:Own")
    # As long as before, and perhaps in the same second, which is all that compiled files note.
    (folder / "own.py").write_text(OWN.replace("cls(3)", "cls(4)"))
    assert registry.builder("strategy", "recipes/own.py:Own.with_three")().n == 4
    assert before.with_three().n == 3


def test_threads_that_want_the_same_file_get_the_same_whole_module(folder: Path) -> None:
    (folder / "slow.py").write_text("import time\ntime.sleep(0.2)\n" + OWN)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(registry.builder, ["strategy"] * 4, ["recipes/slow.py:Own"] * 4))
    assert len(set(found)) == 1


def test_an_import_path_names_a_class_of_a_module(folder: Path) -> None:
    path = "tts_verifier.strategies.best_of_n:BestOfN"
    assert registry.builder("strategy", path) is BestOfN
    (folder / "own_package").mkdir()
    (folder / "own_package" / "parts.py").write_text("from tts_verifier.testing import *\n")
    with registry.plugins_beside(folder):
        verifier = registry.builder("verifier", "own_package.parts:FakeVerifier")
    assert verifier is FakeVerifier
    for name in [n for n in sys.modules if n.startswith("own_package")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        ("mine.py:Mine", True),
        ("../a b/mine.py:Mine.from_pretrained", True),
        ("C:\\parts\\mine.py:Mine", True),
        ("package.module:Class", True),
        ("mine.py", False),
        ("C:\\folder", False),
        ("GYX97/ImageDoctor", False),
        ("https://host:8000", False),
        ("a.b:", False),
    ],
)
def test_what_an_import_path_is(name: str, is_path: bool) -> None:
    assert registry.is_import_path(name) is is_path


def test_a_verifier_of_ones_own_is_loaded_by_its_import_path(folder: Path) -> None:
    (folder / "judge.py").write_text("from tts_verifier.testing import FakeVerifier as Mine\n")
    assert isinstance(load_verifier("recipes/judge.py:Mine"), FakeVerifier)
    with pytest.raises(InputError, match=r"'recipes/judge\.py:Mine' has no argument 'm'"):
        load_verifier("recipes/judge.py:Mine", options={"m": 1})
    (folder / "raises.py").write_text("from judge import Mine\ndef make(): return Mine() / 2\n")
    with pytest.raises(InputError, match=r"cannot be built: TypeError: .*raises\.py, line 2\)"):
        load_verifier("recipes/raises.py:make")
    del sys.modules["judge"]


def test_a_part_inside_another_is_built_from_its_table(folder: Path) -> None:
    table = {"name": "recipes/own.py:Own", "n": 2}
    assert Adaptive(table).strategy.n == 2
    with pytest.raises(InputError, match="strategy 'adaptive' needs strategy, which is not given"):
        registry.built("strategy", {"name": "adaptive"})
    with pytest.raises(InputError, match=r"has no argument 'm'\. Available: n") as caught:
        registry.built("strategy", {**table, "m": 3})
    assert caught.value.argument == "m"


def test_a_section_with_an_import_path_pickles_by_its_name(folder: Path) -> None:
    (folder / "r.yaml").write_text(
        "generator: {name: fake}\nverifier: {name: fake}\n"
        "strategy: {name: own.py:Own, n: 3}\nprompts: [a]\n"
    )
    recipe = load_recipe(folder / "r.yaml")
    assert recipe.resolved()["strategy"] == {"name": "own.py:Own", "n": 3}
    content = pickle.dumps(recipe.sections["strategy"])
    # As in another process, which has not read the file.
    name = recipe.sections["strategy"].builder.__module__
    del sys.modules[name]
    again = pickle.loads(content)
    assert name in sys.modules
    assert again.build().n == 3
