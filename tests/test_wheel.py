"""What is packed, and that the commands in the README are the ones that are run."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from tts_verifier.recipe.recipe import recipe_folder

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def build(how: str, source: Path, into: Path) -> zipfile.ZipFile:
    """Builds a wheel offline, with the build backend that this environment has."""
    backend = PROJECT["build-system"]["build-backend"]
    code = f"from {backend} import {how}; {how}({str(into)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, stdout=subprocess.PIPE)
    return zipfile.ZipFile(next(into.glob("*.whl")))


def test_the_wheel_has_every_module_and_recipes_weights_and_types(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("__pycache__", "weights")
    for name in ("tts_verifier", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    weights = source / "tts_verifier" / "shapes" / "weights" / "generator" / "vae"
    weights.mkdir(parents=True)
    (weights / "model.safetensors").write_bytes(b"")
    (source / "tests").mkdir()
    (source / "tests" / "test_nothing.py").touch()
    (tmp_path / "wheel").mkdir()
    with build("build_wheel", source, tmp_path / "wheel") as wheel:
        names = set(wheel.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "tts_verifier").rglob("*.py")}
    recipes = {f"tts_verifier/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert (
        modules
        | recipes
        | {
            "tts_verifier/shapes/weights/generator/vae/model.safetensors",
            "tts_verifier/py.typed",
            "tts_verifier/analysis/report/templates/page.html",
            "tts_verifier/verifiers/imagedoctor/FIDELITY.md",
        }
        <= names
    )
    assert not [name for name in names if not name.startswith("tts_verifier")]
    assert not [name for name in names if name.endswith((".pyc", "test_nothing.py"))]


def test_an_editable_install_leaves_a_plain_path(tmp_path: Path) -> None:
    """Type checkers read a path in a .pth file, they run no import hook."""
    with build("build_editable", ROOT, tmp_path) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        assert [name.endswith(".pth") for name in names] == [True]
        assert wheel.read(names[0]).decode().strip() == str(ROOT)


def test_the_packaged_recipes_are_found_in_a_wheel_and_in_a_checkout(tmp_path: Path) -> None:
    assert recipe_folder(ROOT / "tts_verifier") == ROOT / "recipes"
    (tmp_path / "tts_verifier" / "recipes").mkdir(parents=True)
    assert recipe_folder(tmp_path / "tts_verifier") == tmp_path / "tts_verifier" / "recipes"


def test_constraints_name_every_dependency() -> None:
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    wanted = PROJECT["project"]["dependencies"]
    wanted = [*wanted, *PROJECT["project"]["optional-dependencies"]["test"]]
    names = {re.split(r"[<>=\[]", item)[0] for item in wanted}
    # Every build of torch for a GPU asks for a triton of its own.
    assert names - set(pinned) == {"triton"}
    assert not [version for version in pinned.values() if "+" in version], "no local builds"


def test_continuous_integration_runs_the_command_of_the_readme(tmp_path: Path) -> None:
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    script = "intro\n<!-- test-command -->\n```sh\necho ran; echo twice\n```\n```sh\nexit 1\n```\n"
    (tmp_path / "README.md").write_text(script)
    done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["+ echo ran; echo twice", "ran", "twice"]
    (tmp_path / "README.md").write_text("nothing")
    done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True)
    assert (done.returncode, "has no fenced block" in done.stderr) == (1, True)
