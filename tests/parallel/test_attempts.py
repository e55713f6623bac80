"""What a worker does with one shard: whose it is, what earlier processes left, who is to blame."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from inline_engine import InlineEngine
from worker_parts import TracedGenerator, choices, traced, traced_recipe

import tts_verifier
from tts_verifier.errors import RunError
from tts_verifier.log import read_rows
from tts_verifier.log.lock import FolderLock
from tts_verifier.log.sharded import last_attempt
from tts_verifier.log.storage.files import Folder
from tts_verifier.parallel import run_parallel
from tts_verifier.parallel.shard_state import AttemptNote, next_note
from tts_verifier.parallel.worker import SESSION, run_shard
from tts_verifier.recipe.sections import Section
from tts_verifier.testing import FakeGenerator, FakeVerifier


@pytest.fixture
def assignment(tmp_path, inline, monkeypatch):
    """The first of two shards of a run whose coordinator is there."""
    kept = []
    monkeypatch.setattr(InlineEngine, "submit", lambda self, key, item: kept.append(item))
    monkeypatch.setattr(InlineEngine, "take", lambda self, seconds: 1 / 0)
    recipe = traced_recipe(tmp_path, "parallel.shard=5")
    with pytest.raises(ZeroDivisionError):
        run_parallel(recipe, say=lambda text: None)
    Folder(tmp_path / "run").write(SESSION, json.dumps(kept[0].session).encode())
    return kept[0]


def test_a_worker_runs_its_shard_and_says_what_it_did(assignment):
    report = run_shard(pickle.loads(pickle.dumps(assignment)))
    assert (report.counts.new, report.counts.prompts, report.attempt) == (20, 5, 1)
    assert report.worker.endswith(f":{os.getpid()}")
    assert {row["prompt_id"] for row in read_rows(assignment.folder)} == {
        f"{number:04d}" for number in range(5)
    }
    assert len(pickle.dumps(assignment)) < 8000


class PlacedVerifier(FakeVerifier):
    """Has a device, and notes which one it was built on."""

    built: ClassVar[list[str | None]] = []

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.built.append(device)


@pytest.mark.parametrize(
    ("gpus", "values", "device"),
    [(1, {}, None), (2, {}, "cuda:1"), (2, {"device": "cuda:0"}, "cuda:0")],
)
def test_a_worker_of_two_gpus_has_its_verifier_on_the_second(
    tmp_path, inline, monkeypatch, gpus, values, device
):
    monkeypatch.setattr(PlacedVerifier, "built", [])
    recipe = traced_recipe(tmp_path, f"parallel.gpus={gpus}", "parallel.shard=5")
    verifier = Section(PlacedVerifier, values, "test", {}, "fake")
    recipe = replace(recipe, sections={**recipe.sections, "verifier": verifier})
    run_parallel(recipe, say=lambda text: None)
    assert PlacedVerifier.built == [device], "and once for both shards"


def test_a_worker_with_another_version_is_refused(assignment):
    other = replace(assignment, version="9.9.9")
    with pytest.raises(RunError, match=rf"version of tts_verifier, 9.9.9; .* has {_version()}"):
        run_shard(other)


def test_a_worker_that_reads_the_recipe_in_another_way_is_refused(assignment):
    order = pickle.loads(assignment.order)
    order = replace(order, resolved={**order.resolved, "seed": 1})
    with pytest.raises(RunError, match=r"other defaults for seed. Install the same packages"):
        run_shard(replace(assignment, order=pickle.dumps(order)))


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt()])
def test_a_part_that_ends_its_process_is_an_error(assignment, monkeypatch, end):
    def generate(self, jobs):
        raise end

    monkeypatch.setattr(TracedGenerator, "generate", generate)
    with pytest.raises(RunError, match=r"must not end their process, and one did: (Sys|Key)"):
        run_shard(assignment)


def test_relative_paths_mean_those_of_the_coordinator(assignment, tmp_path, monkeypatch):
    def generate(self, jobs):
        Path("here").touch()
        return FakeGenerator.generate(self, jobs)

    # As the worker of a cluster, which was started elsewhere.
    monkeypatch.chdir("/")
    monkeypatch.setattr(TracedGenerator, "generate", generate)
    run_shard(replace(assignment, place=tmp_path))
    assert (tmp_path / "here").exists()
    assert Path.cwd() == Path("/")
    run_shard(replace(assignment, place=tmp_path / "not on this machine"))


def test_a_worker_that_does_not_see_the_folder_is_refused(assignment, tmp_path):
    with pytest.raises(RunError, match=r"must see the run folder, and .* cannot read .*elsewhere"):
        run_shard(replace(assignment, folder=tmp_path / "elsewhere"))
    with pytest.raises(RunError, match=r"must see the same run folder; .* holds another run"):
        run_shard(replace(assignment, run="0" * 32))


def test_a_worker_of_an_earlier_coordinator_stops_before_its_next_batch(assignment, tmp_path):
    (tmp_path / "run" / SESSION).write_text('"another"')
    report = run_shard(assignment)
    assert report.busy is None
    assert traced(tmp_path, "drew") == []


def test_a_shard_of_another_machine_goes_to_a_new_attempt(assignment, tmp_path):
    folder, number = last_attempt(assignment.folder, "00000")
    assert number == 1
    run_shard(replace(assignment, prompts=assignment.prompts))
    (folder / "done.json").unlink()
    (folder / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "boot": "x"}))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    report = run_shard(assignment)
    assert (report.attempt, report.counts.new, report.counts.from_log) == (2, 0, 20)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(choices(assignment.folder)) == 20
    # A late writer may do with the first attempt what it likes.
    shutil.rmtree(folder / "images")
    (folder / "trials.parquet").write_bytes(b"torn")
    assert len(choices(assignment.folder)) == 20
    assert read_rows(assignment.folder)[0]["image_path"].startswith("images/")


def test_the_lock_of_a_shard_names_its_run_and_attempt(assignment, tmp_path):
    lock = FolderLock(tmp_path / "here", holder={"run": assignment.run, "attempt": 3})
    held = json.loads((tmp_path / "here/lock").read_text())
    lock.release()
    assert (held["run"], held["attempt"], held["pid"]) == (assignment.run, 3, os.getpid())


def test_deaths_are_counted_and_a_prompt_is_blamed_when_it_was_alone(tmp_path):
    folder = Folder(tmp_path)
    assert next_note(tmp_path, "s") == AttemptNote("s")
    AttemptNote("s", "run").write(folder)
    assert (next_note(tmp_path, "s").deaths, next_note(tmp_path, "other").deaths) == (1, 0)
    AttemptNote("s", "run", deaths=1).write(folder)
    assert next_note(tmp_path, "s").one_by_one
    AttemptNote("s", "run", deaths=1, rows=-7).write(folder)
    assert next_note(tmp_path, "s").deaths == 1, "a new row is progress"
    AttemptNote("s", "run", deaths=4, prompts=("a", "b")).write(folder)
    assert next_note(tmp_path, "s").refused == {}
    AttemptNote("s", "run", deaths=4, prompts=("a",)).write(folder)
    refused = next_note(tmp_path, "s").refused
    assert list(refused) == ["a"]
    limited = next_note(tmp_path, "s", timeout=9).refused["a"]
    assert limited.startswith(f"{refused['a']}; parallel.timeout=9 ends workers too")
    AttemptNote("s", "", refused=refused).write(folder)
    assert next_note(tmp_path, "s") == AttemptNote("s", refused=refused)
    AttemptNote("other", "run", deaths=4, refused=refused).write(folder)
    assert next_note(tmp_path, "s") == AttemptNote("s", refused=refused)


def test_deaths_while_parts_are_built_end_the_run(tmp_path):
    AttemptNote("s", "build", build_deaths=1).write(Folder(tmp_path))
    assert next_note(tmp_path, "s").build_deaths == 2
    AttemptNote("s", "build", build_deaths=2).write(Folder(tmp_path))
    with pytest.raises(RunError, match=r"3 workers died .* while they built the generator"):
        next_note(tmp_path, "s")


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", '{"session": 3}', '{"deaths": "x"}', "{" * 999),
        *('{"session": "s", "prompts": 7}', '{"session": "s", "refused": {"0": 5}}'),
        '{"session": "s", "prompts": [7]}',
    ],
)
def test_a_damaged_note_counts_as_none(tmp_path, content):
    (tmp_path / "attempt.json").write_text(content)
    assert next_note(tmp_path, "s") == AttemptNote("s")


def test_a_refused_prompt_is_a_row_with_its_error(assignment, tmp_path):
    shard = tmp_path / "run/shards/00000"
    note = AttemptNote(assignment.session, "run", deaths=4, prompts=("0002",))
    note.write(Folder(shard))
    assert run_shard(assignment).counts.failed == 4
    errors = {row["prompt_id"]: row["error"] for row in read_rows(assignment.folder)}
    assert "3 workers died on this prompt" in errors.pop("0002")
    assert set(errors.values()) == {None}


def test_prompts_are_tried_one_by_one_after_two_deaths(assignment, tmp_path):
    shard = tmp_path / "run/shards/00000"
    AttemptNote(assignment.session, "run", deaths=1).write(Folder(shard))
    report = run_shard(assignment)
    assert report.counts.new == 20
    assert {len(call) for call in traced(tmp_path, "drew")} == {2}
    assert not (shard / "attempt.json").exists()


def _version():
    return tts_verifier.__version__
