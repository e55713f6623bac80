"""What is packed, and that the commands in the README are the ones that are run."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    folders = {p.parent for p in (ROOT / "tts_verifier").rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(listed) == sorted(found | {"tts_verifier.recipes"})


def test_the_wheel_has_recipes_weights_and_types(tmp_path: Path) -> None:
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
    command = ["pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w"]
    subprocess.run([sys.executable, "-m", *command, tmp_path, source], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert {
        "tts_verifier/recipes/bestofn.yaml",
        "tts_verifier/shapes/weights/generator/vae/model.safetensors",
        "tts_verifier/py.typed",
        "tts_verifier/analysis/report/templates/page.html",
        "tts_verifier/verifiers/imagedoctor/verifier.py",
    } <= names
    assert not [name for name in names if not name.startswith("tts_verifier")]


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


def test_ci_runs_the_command_of_the_readme(tmp_path: Path) -> None:
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    script = "intro\n<!-- test-command -->\n```sh\necho ran; echo twice\n```\n```sh\nexit 1\n```\n"
    (tmp_path / "README.md").write_text(script)
    done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["+ echo ran; echo twice", "ran", "twice"]
    (tmp_path / "README.md").write_text("nothing")
    done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True)
    assert (done.returncode, "has no fenced block" in done.stderr) == (1, True)
