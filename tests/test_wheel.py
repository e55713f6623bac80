"""The wheel and the editable install, the pinned versions, and the README's commands."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from tts_verifier.recipe import recipe_folder

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
    for name in ("tts_verifier", "recipes", "pipelines"):
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
    recipes = {f"tts_verifier/{p.relative_to(ROOT)}" for p in (ROOT / "recipes").rglob("*.yaml")}
    pipelines = {f"tts_verifier/pipelines/{p.name}" for p in ROOT.glob("pipelines/verified_*.py")}
    assert (
        modules
        | recipes
        | pipelines
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


def test_metadata_and_citation_say_the_same() -> None:
    project, citation = PROJECT["project"], yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert citation["authors"] == project["authors"]
    assert "test-time scaling for text-to-image" in project["description"].lower()
    assert not [c for c in project["classifiers"] if c.startswith("License")], "license says it"


@pytest.mark.slow
def test_a_wheel_alone_runs_the_main_job(tmp_path: Path) -> None:
    """The environment has the wheel, and sees the libraries of the one that runs the tests."""
    (tmp_path / "wheel").mkdir()
    build("build_wheel", ROOT, tmp_path / "wheel").close()
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    assert wheel.stat().st_size < 35e6, "the bundled weights, and little else"
    venv.create(tmp_path / "env", with_pip=False)
    bin_folder = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    (site,) = (tmp_path / "env").rglob("site-packages")
    libraries = [path for path in sys.path if path.endswith("-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip", "--python", str(bin_folder / "python"), "install", "-q"]
    offline = ["--no-index", "--no-deps", "--ignore-installed", str(wheel)]
    subprocess.run([*pip, *offline], check=True, env=env, cwd=tmp_path)

    prompts = "prompts=[a red circle, two orange stars]"
    command = [str(bin_folder / "tts-run"), "bestofn", prompts, "--output", "run"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "chosen.png").exists()
    assert len(list((tmp_path / "run" / "chosen").glob("*.png"))) == 2
    where = "import tts_verifier; print(tts_verifier.__file__)"
    python = [str(bin_folder / "python"), "-c", where]
    found = subprocess.run(python, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert Path(found.stdout.strip()).is_relative_to(tmp_path)


@pytest.mark.slow
def test_the_distributions_are_what_an_index_accepts(tmp_path: Path) -> None:
    pytest.importorskip("twine")
    build("build_wheel", ROOT, tmp_path).close()
    subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, tmp_path.iterdir())],
        check=True,
    )


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
    (tmp_path / "README.md").write_text(script.replace("test-command", "main-command"))
    command = [tmp_path / ".ci" / "run", "main-command"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["ran", "twice"]
    (tmp_path / "README.md").write_text("nothing")
    done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True)
    assert (done.returncode, "has no fenced block" in done.stderr) == (1, True)


def test_the_workflow_runs_both_commands_of_the_readme() -> None:
    workflow = (ROOT / ".github" / "workflows" / "readme.yml").read_text()
    jobs = yaml.safe_load(workflow)["jobs"]
    steps = {step.get("run", "") for job in jobs.values() for step in job["steps"]}
    assert {".ci/run", ".ci/run main-command", "mkdocs build --strict"} <= steps


@pytest.mark.parametrize("name", ["Containerfile", "examples/serve/Containerfile"])
def test_container_files_copy_what_the_wheel_is_made_of(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]) <= copied
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= copied
    assert not [path for path in copied if not (ROOT / path).exists()]
    assert any(line.startswith("USER ") for line in lines), "not root"
