"""The environment of a run, for the log's header: versions, revision of the code, device."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

PACKAGES: Final = (
    "tts-verifier",
    "accelerate",
    "diffusers",
    "numpy",
    "pillow",
    "pyarrow",
    "safetensors",
    "segment-anything",
    "tokenizers",
    "torch",
    "transformers",
)


def environment(packages: Iterable[str] = PACKAGES) -> dict[str, object]:
    """Returns the environment of this process as JSON values.

    Args:
        packages: names of the packages whose versions to return.

    Returns:
        `python`: its version. `versions`: by package, None where it is not installed.
        `git_revision`: see `git_revision`. `device`: the GPU's name, else the processor's.
    """
    return {
        "python": platform.python_version(),
        "versions": {name: _package_version(name) for name in packages},
        "git_revision": _own_revision(),
        "device": _device_name(),
    }


@cache  # Parsing the metadata of all packages takes longer than a small run.
def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache  # The code that runs is that of the first time, whatever is checked out later.
def _own_revision() -> str | None:
    return git_revision(Path(__file__).parent)


def git_revision(folder: Path) -> str | None:
    """Returns the commit of a folder's checkout, with "+" if tracked files were changed.

    None where git is missing or does not track the folder.
    """

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *command],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        # A package installed into a folder of another project lies in that project's checkout.
        if not git("ls-files"):
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _device_name() -> str:
    # A run that uses a GPU has imported torch by now; no other run should have to.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return processor()


def processor() -> str:
    """Returns the processor's name and its number of cores, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    # Linux on ARM has no "model name"; other systems have no such file.
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
