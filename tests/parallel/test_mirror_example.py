"""The example that copies a run folder to an object store while the run goes on."""

import importlib.util
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFile
from worker_parts import TracedGenerator, choices, traced, traced_recipe

from tts_verifier.errors import RunError
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


@pytest.fixture(params=["memory", pytest.param("file", marks=pytest.mark.slow)])
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
    assert "must be a new folder, and exists or is an address. Name" in result.output


def test_names_in_a_store_do_not_lead_out_of_the_folder(tmp_path, mirror):
    filesystem, place = fsspec.url_to_fs(f"memory://{tmp_path}/run")
    for name in ("header.json", "../x"):
        path = f"{place}/{name}"
        filesystem.store[path] = MemoryFile(filesystem, path, b"{}")
    try:
        result = CliRunner().invoke(mirror.main, [f"memory://{tmp_path}/run", f"{tmp_path}/a/run"])
    finally:
        for name in ("header.json", "../x"):
            del filesystem.store[f"{place}/{name}"]
    assert result.exit_code == 1
    assert "names '../x'. Nothing there is read" in result.output
    assert not list(tmp_path.iterdir())


def test_files_of_others_in_a_store_are_never_deleted(tmp_path, inline, mirror, store):
    filesystem, place = fsspec.url_to_fs(store)
    filesystem.makedirs(place)
    filesystem.pipe_file(f"{place}/precious", b"x")
    with pytest.raises(RunError, match=r"header.json must be a run's header"):
        mirror.upload(tmp_path / "misspelt", store)
    with pytest.raises(RunError, match=r"must have a copy of a run, and has no header.json"):
        mirror.download(store, tmp_path / "copy")
    run_parallel(traced_recipe(tmp_path, *SHARDS), say=lambda text: None)
    run_recipe(traced_recipe(tmp_path), output=tmp_path / "one", say=lambda text: None)
    mirror.upload(tmp_path / "run", f"{store}/of a run")
    for run, address in (("run", store), ("one", f"{store}/of a run")):
        with pytest.raises(RunError, match=r"has files of something else. Name another address"):
            mirror.upload(tmp_path / run, address)
    assert filesystem.cat_file(f"{place}/precious") == b"x"


def test_a_first_copy_that_was_cut_short_goes_on(tmp_path, inline, mirror, store):
    run_parallel(traced_recipe(tmp_path, *SHARDS), say=lambda text: None)
    mirror.upload(tmp_path / "run", store)
    filesystem, place = fsspec.url_to_fs(store)
    for cut_short in (b"", b'{"run": '):
        filesystem.rm_file(f"{place}/header.json")
        if cut_short:
            filesystem.pipe_file(f"{place}/header.json", cut_short)
        assert "header.json" in mirror.upload(tmp_path / "run", store)


def test_a_store_that_fails_for_a_while_gets_the_copy_later(tmp_path, inline, mirror, monkeypatch):
    run_parallel(traced_recipe(tmp_path, *SHARDS), say=lambda text: None)
    run, address, rounds = tmp_path / "run", f"file://{tmp_path}/bucket", []
    (run / "old.txt").touch()
    put, remove = LocalFileSystem.put_file, LocalFileSystem.rm_file

    def failing_put(self, *arguments, **options):
        if len(rounds) == 1:
            raise PermissionError("no permission")
        return put(self, *arguments, **options)

    def failing_remove(self, *arguments, **options):
        remove(self, *arguments, **options)
        if len(rounds) == 2:
            raise OSError("out of reach")

    def sleep(seconds):
        rounds.append(seconds)
        (run / "new.txt").touch()
        (run / "old.txt").unlink(missing_ok=True)
        if len(rounds) > 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(LocalFileSystem, "put_file", failing_put)
    monkeypatch.setattr(LocalFileSystem, "rm_file", failing_remove)
    monkeypatch.setattr(mirror.time, "sleep", sleep)
    done = CliRunner().invoke(mirror.main, [str(run), address, "--every", "5"])
    assert "Not copied, tried again in 5 s: no permission\n" in done.stderr
    assert "Not copied, tried again in 5 s: out of reach\n" in done.stderr
    assert done.stderr.count("Not copied") == 2
    mirror.download(address, tmp_path / "copy")
    assert (tmp_path / "copy/new.txt").exists()
    assert not (tmp_path / "copy/old.txt").exists()
    rounds[:] = [0]
    done = CliRunner().invoke(mirror.main, [str(run), f"{address}/again"])
    assert (done.exit_code, done.output) == (1, "Error: no permission\n")


def test_addresses_that_cannot_be_meant_are_errors(tmp_path, inline, mirror):
    run_parallel(traced_recipe(tmp_path, *SHARDS, prompts=1), say=lambda text: None)
    for source, goal, message in (
        (tmp_path / "run", "nostore://x", "Protocol not known"),
        ("memory://a", "memory://b", "must be a new folder, and exists or is an address"),
        (tmp_path / "none", "memory://b", "must be a run's header"),
        ("memory://none", tmp_path / "new", "has no header.json"),
    ):
        done = CliRunner().invoke(mirror.main, [str(source), str(goal)])
        assert done.exit_code in (1, 2)
        assert message in done.output
    filesystem, place = fsspec.url_to_fs(f"memory://{tmp_path}/other")
    filesystem.pipe_file(f"{place}/header.json", b"[]")
    with pytest.raises(RunError, match=r"has files of something else"):
        mirror.upload(tmp_path / "run", f"memory://{tmp_path}/other")


def test_a_copy_that_was_cut_short_is_no_run_folder(tmp_path, inline, mirror, store, monkeypatch):
    run_parallel(traced_recipe(tmp_path, *SHARDS, prompts=1), say=lambda text: None)
    mirror.upload(tmp_path / "run", store)
    filesystem, _ = fsspec.url_to_fs(store)
    with monkeypatch.context() as patched:
        patched.setattr(type(filesystem), "get_file", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mirror.download(store, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    stale = tmp_path / "copy.partial/shards/00000/parts/00000000.parquet"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"since merged")
    mirror.download(store, tmp_path / "copy")
    assert not list((tmp_path / "copy").rglob(stale.name))
    assert choices(tmp_path / "copy") == choices(tmp_path / "run")


def test_what_a_link_leads_to_is_not_copied(tmp_path, inline, mirror, store):
    run_parallel(traced_recipe(tmp_path, *SHARDS), say=lambda text: None)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "run/link").symlink_to(tmp_path / "secret")
    assert "link" not in mirror.upload(tmp_path / "run", store)
