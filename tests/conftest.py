"""What every test shares: quiet, repeatable property tests, and no waiting for the disk."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    # Kernels run operation by operation; read when triton is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes share the cores, and so do the commands that they start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

# Modules and tests stay to the end: looking for garbage among them would be for nothing.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    # Tests make many small objects, and few cycles.
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


def pytest_unconfigure() -> None:
    # Libraries in C report what is never freed as a leak.
    gc.unfreeze()


settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing every small file to a busy disk would take most of the tests' time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser; tests that need one are skipped without it."""
    sys.path.append(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
    from chromium import Chromium, find_chromium

    program = find_chromium()
    if program is None:
        pytest.skip("needs chromium")
    with Chromium(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser
