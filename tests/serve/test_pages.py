"""The pages about the server and the trainers say what is so."""

from __future__ import annotations

import ast
import base64
import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from serving import serving
from tiny_imagedoctor import noise

from tts_verifier.cli.serve import serve_command
from tts_verifier.serve.limits import MIB, RequestLimits
from tts_verifier.testing import FakeVerifier

ROOT = Path(__file__).parent.parent.parent
SERVER = (ROOT / "tts_verifier/serve/SERVER.md").read_text(encoding="utf-8")
TRAINERS = (ROOT / "tts_verifier/reward/TRAINERS.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def test_every_import_of_the_pages_is_there() -> None:
    for code in blocks(SERVER + TRAINERS, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(
                        f"{node.module}.{alias.name}"
                    )


def test_the_limits_are_those_of_the_command() -> None:
    shown = CliRunner().invoke(serve_command, ["--help"]).output
    defaults = RequestLimits()
    assert (defaults.body // MIB, defaults.memory // MIB) == (256, 4096)
    assert "| 256 MiB |" in SERVER
    assert "| 4096 MiB |" in SERVER
    for option, value in re.findall(r"\| `(--[\w-]+)` \| ([\d,]+) \|", SERVER):
        assert option in shown
        name = option.removeprefix("--").removeprefix("max-").replace("-", "_")
        assert getattr(defaults, name) == float(value.replace(",", "")), option


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_command_for_curl_works(tmp_path: Path) -> None:
    noise(8, 8).save(tmp_path / "picture.png")
    (command,) = (code for code in blocks(SERVER, "sh") if "curl" in code)
    with serving(FakeVerifier()) as url:
        done = subprocess.run(
            ["bash", "-c", command.replace("http://127.0.0.1:8000", url)],
            cwd=tmp_path,
            capture_output=True,
            check=True,
        )
    found = json.loads(done.stdout)["results"][0]["maps"]["artifact"]
    assert found["shape"] == [64, 64]
    assert len(base64.b64decode(found["data"])) == 4 * 64 * 64


def test_the_settings_for_trainers_name_what_is_there() -> None:
    (config,) = (yaml.safe_load(code) for code in blocks(TRAINERS, "yaml"))
    assert config["rewards"][0]["server_url"].startswith("http://")
    path, name = re.findall(r"\.(?:path=pkg://|name=)([\w.]+)", TRAINERS)
    assert callable(getattr(importlib.import_module(path), name))


def test_the_container_file_starts_the_command() -> None:
    text = (ROOT / "examples/serve/Containerfile").read_text(encoding="utf-8")
    start = json.loads(text.partition("ENTRYPOINT ")[2].partition("\n")[0])
    known = {option for parameter in serve_command.params for option in parameter.opts}
    assert start[0] == "tts-serve"
    assert {part for part in start if part.startswith("--")} <= known
    for copied in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for name in copied.split():
            assert (ROOT / name).exists(), name
