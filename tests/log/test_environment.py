"""Under what a run was made."""

import json
import subprocess
from pathlib import Path

import pytest

from tts_verifier.log.environment import environment, git_revision


def test_an_environment_is_json_and_names_versions() -> None:
    values = environment()
    assert json.loads(json.dumps(values)) == values
    assert values["versions"]["numpy"]
    assert values["device"]


def test_what_is_not_installed_has_no_version() -> None:
    assert environment(["no-such-package"])["versions"] == {"no-such-package": None}


def test_a_revision_is_the_commit_and_a_plus_for_changes(tmp_path: Path) -> None:
    def git(*command: str) -> None:
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", tmp_path, *names, *command], check=True, capture_output=True)

    assert git_revision(tmp_path) is None
    git("init")
    (tmp_path / "file").write_text("1")
    assert git_revision(tmp_path) is None, "a package that git does not track"
    git("add", "file")
    git("commit", "-m", "one")
    clean = git_revision(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "file").write_text("2")
    assert git_revision(tmp_path) == clean + "+"


def test_without_git_there_is_no_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_revision(Path(__file__).parent) is None
