"""The example that copies a run folder to an object store while the run goes on."""

import importlib.util
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner
from worker_parts import TracedGenerator, choices, traced, traced_recipe

from tts_verifier.parallel import run_parallel
from tts_verifier.recipe import run_recipe

EXAMPLE = Path(__file__).parents[2] / "examples/mirror_run.py"
SHARDS = ("parallel.workers=2", "parallel.shard=4")


@pytest.fixture(scope="module")
def mirror():
    spec = importlib.util.spec_from_file_location("mirror_run", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    """Gives an address, and empties it afterwards."""
    yield f"{request.param}://{tmp_path}/bucket/run"
    filesystem, place = fsspec.url_to_fs(f"memory://{tmp_path}")
    if filesystem.exists(place):
        filesystem.rm(place, recursive=True)


def test_a_run_goes_on_from_a_copy_that_was_made_while_it_ran(
    tmp_path, inline, monkeypatch, mirror, store
):
    draw, copies = TracedGenerator.generate, []

    def generate(self, jobs):
        if len(traced(tmp_path, "drew")) in (8, 24):
            copies.append(mirror.upload(tmp_path / "run", store, *copies[-1:]))
        return draw(self, jobs)

    monkeypatch.setattr(TracedGenerator, "generate", generate)
    run_parallel(traced_recipe(tmp_path, *SHARDS), say=lambda text: None)
    assert len(copies) == 2
    (tmp_path / "run").rename(tmp_path / "lost")
    mirror.download(store, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("lock"))
    run_parallel(traced_recipe(tmp_path, *SHARDS), say=lambda text: None)
    # Of the 40 images of a run, 24 were there when the last copy was made.
    assert len(traced(tmp_path, "drew")) == 40 + 16
    run_recipe(traced_recipe(tmp_path), output=tmp_path / "one", say=lambda text: None)
    assert choices(tmp_path / "run") == choices(tmp_path / "one")


def test_a_finished_copy_is_a_finished_run(tmp_path, inline, mirror, store):
    seen = None
    for n in (2, 4):
        run_parallel(traced_recipe(tmp_path, *SHARDS, f"strategy.n={n}"), say=lambda text: None)
        seen = mirror.upload(tmp_path / "run", store, seen)
    mirror.upload(tmp_path / "run", store)
    mirror.download(store, tmp_path / "copy")
    assert choices(tmp_path / "copy") == choices(tmp_path / "run")
    recipe = traced_recipe(tmp_path, *SHARDS)
    run_parallel(recipe, output=tmp_path / "copy", say=lambda text: None)
    assert inline.opened == 2
    assert len(traced(tmp_path, "drew")) == 40


def test_a_copy_is_not_written_over_a_run(tmp_path, mirror):
    result = CliRunner().invoke(mirror.main, ["memory://bucket/run", str(tmp_path)])
    assert result.exit_code == 2
    assert "must be a new folder, and exists. Name another one." in result.output
