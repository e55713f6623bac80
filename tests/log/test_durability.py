"""What can happen to a run folder: every fault is recovered from, or named with nothing lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import DyingGenerator, Killed, images_generated
from PIL import Image
from searches import InpaintReroll, SeedBeam

from tts_verifier import run
from tts_verifier.errors import RunError, RunWarning
from tts_verifier.interfaces import Strategy
from tts_verifier.log import open_log, read_header, read_trials
from tts_verifier.log.lock import FolderLock
from tts_verifier.log.storage import table_writer, tables
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Budget, Look, Mask, Prompt, Repaint, Trial

PROMPTS = ["a red circle", "a blue star", "three rings"]


def search(
    folder: Path, strategy: Strategy | None = None, generator: FakeGenerator | None = None
) -> pd.DataFrame:
    """Runs to the end and returns what does not depend on the clock."""
    generator = generator or FakeGenerator(batch_size=4)
    run(PROMPTS, generator, FakeVerifier(), strategy or InpaintReroll(), folder=folder)
    return outcome(folder)


def outcome(folder: Path) -> pd.DataFrame:
    table = pd.read_parquet(folder / "trials.parquet").sort_values("trial_id")
    assert table.trial_id.is_unique
    return table.drop(columns=["generate_seconds", "verify_seconds"]).reset_index(drop=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return search(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A run that was killed at its fourth batch of images."""
    with pytest.raises(Killed):
        search(tmp_path, generator=DyingGenerator(3))
    return tmp_path


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other)


# -- the lock --------------------------------------------------------------------------------


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with open_log(tmp_path, {}, {}):
        with pytest.raises(RunError) as caught:
            open_log(tmp_path, {}, {})
        assert f"{tmp_path} is in use: process {os.getpid()} of " in str(caught.value)
        assert f"delete {tmp_path / 'lock'}" in str(caught.value)
    assert not (tmp_path / "lock").exists()
    open_log(tmp_path, {}, {}).close()


def test_the_lock_of_a_killed_process_is_stale(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tts_verifier.log.lock import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(RunError, match=f"in use: process {holder.pid} of"):
        FolderLock(tmp_path)
    holder.kill()
    holder.communicate()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == holder.pid
    FolderLock(tmp_path).release()


def test_a_lock_left_by_another_machine_is_refused_and_one_of_before_a_restart_is_not(
    tmp_path: Path,
) -> None:
    left = {"pid": 7, "host": "elsewhere", "boot": "other", "started": "2026-01-02T03:04:05"}
    (tmp_path / "lock").write_text(json.dumps(left))
    with pytest.raises(RunError, match="process 7 of elsewhere, started 2026-01-02T03:04:05"):
        FolderLock(tmp_path)
    (tmp_path / "lock").write_text(json.dumps({**left, "host": os.uname().nodename}))
    FolderLock(tmp_path).release()
    (tmp_path / "lock").write_text("torn {")
    FolderLock(tmp_path).release()


def test_a_lock_that_was_deleted_by_hand_is_let_go_in_peace(tmp_path: Path) -> None:
    first = FolderLock(tmp_path)
    (tmp_path / "lock").unlink()
    second = FolderLock(tmp_path)
    first.release()
    assert (tmp_path / "lock").exists(), "it is the second one's now"
    second.release()


def test_a_folder_is_closed_once_and_then_another_writers(tmp_path: Path) -> None:
    first = open_log(tmp_path, {}, {})
    first.close()
    with open_log(tmp_path, {}, {}):
        draft = tmp_path / "drafts" / "2.x.png"
        draft.parent.mkdir()
        draft.write_bytes(b"half")
        first.close()
        assert draft.exists()
        assert (tmp_path / "lock").exists()


def test_a_disk_that_turns_read_only_does_not_keep_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(tmp_path, {}, {})
    (tmp_path / "drafts").mkdir()
    (tmp_path / "drafts" / "1.x.png").write_bytes(b"half")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        log.close()
    open_log(tmp_path, {}, {}).close()


# -- torn, foreign and changed files -----------------------------------------------------------


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty"])
def test_a_damaged_part_is_set_aside_and_generated_again(
    broken: Path, whole: pd.DataFrame, damage: str
) -> None:
    part = sorted((broken / "parts").iterdir())[1]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes({"torn": content[:-20], "flipped": content, "empty": b""}[damage])
    generator = FakeGenerator(batch_size=4)
    with pytest.warns(RunWarning, match=rf"{part.name} cannot be used .*SHA-256.* is now .*aside"):
        table = search(broken, generator=generator)
    same(table, whole)
    assert (broken / "aside" / f"{part.name}.0").exists()


def test_a_file_that_is_no_part_is_set_aside(broken: Path, whole: pd.DataFrame) -> None:
    (broken / "parts" / "notes.txt").write_text("mine")
    with pytest.warns(RunWarning, match=r"notes\.txt cannot be used \(it is no part of a run\)"):
        same(search(broken), whole)
    assert (broken / "aside" / "notes.txt.0").read_text() == "mine"


def test_a_foreign_table_among_the_parts_is_set_aside(broken: Path, whole: pd.DataFrame) -> None:
    pd.DataFrame({"x": [1]}).to_parquet(broken / "parts" / "00000009.parquet")
    with pytest.warns(RunWarning, match="it has no column prompt_id"):
        same(search(broken), whole)


def test_two_files_of_one_name_lie_aside_together(broken: Path) -> None:
    for _ in range(2):
        (broken / "parts" / "x").write_text("x")
        with pytest.warns(RunWarning, match="no part of a run"):
            search(broken)
    assert sorted(p.name for p in (broken / "aside").iterdir()) == ["x.0", "x.1"]


@pytest.mark.parametrize("where", ["images", "heatmaps", "masks"])
def test_a_changed_image_is_set_aside_and_generated_again(
    tmp_path: Path, whole: pd.DataFrame, where: str
) -> None:
    search(tmp_path)
    victim = sorted((tmp_path / where).iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:40])
    with pytest.warns(RunWarning) as caught:
        same(search(tmp_path), whole)
    assert f"{victim.name} cannot be used (it was changed since" in str(caught[0].message)
    assert (tmp_path / "aside" / f"{victim.name}.0").exists()


@pytest.mark.parametrize("where", ["images", "heatmaps", "masks"])
def test_a_deleted_folder_of_images_is_generated_again(
    broken: Path, whole: pd.DataFrame, where: str
) -> None:
    search(broken)
    shutil.rmtree(broken / where)
    with pytest.warns(RunWarning, match="cannot be read .No such file.*generated again"):
        same(search(broken), whole)


def test_images_deleted_while_it_runs_are_generated_again_by_the_next(
    tmp_path: Path, whole: pd.DataFrame
) -> None:
    def delete() -> None:
        shutil.rmtree(tmp_path / "images")

    with pytest.raises(RunError, match=r"images/.*cannot be read: No such file.*it again"):
        search(tmp_path, generator=DyingGenerator(3, delete))
    with pytest.warns(RunWarning, match="generated again"):
        same(search(tmp_path), whole)


def test_parts_deleted_while_it_runs_are_an_error_and_nothing_worse(
    tmp_path: Path, whole: pd.DataFrame
) -> None:
    def delete() -> None:
        sorted((tmp_path / "parts").iterdir())[0].unlink()

    with pytest.raises(RunError, match=r"parquet was removed while the run was going on"):
        search(tmp_path, generator=DyingGenerator(4, delete))
    assert "sessions" not in read_header(tmp_path), "only a process that finishes is noted"
    same(search(tmp_path), whole)


@pytest.mark.parametrize("size", [None, (4, 4)])
def test_a_mask_that_is_no_mask_any_more_is_made_again(
    tmp_path: Path, whole: pd.DataFrame, size: tuple[int, int] | None
) -> None:
    search(tmp_path)
    victim = sorted((tmp_path / "masks").iterdir())[0]
    Image.new("RGB", size or (16, 16)).save(victim)
    with pytest.warns(RunWarning) as caught:
        same(search(tmp_path), whole)
    assert f"{victim.name} cannot be used" in str(caught[0].message)


def test_a_mask_deleted_while_the_run_goes_on_is_written_with_its_next_row(tmp_path: Path) -> None:
    mask = Mask.of(np.ones((4, 4), np.bool_))
    first, second = (
        Trial(f"t{seed}", Prompt("p", "p"), 0, Repaint("parent", mask, seed), 1.0)
        for seed in range(2)
    )
    with open_log(tmp_path, {}, {}) as log:
        log.append([first])
        shutil.rmtree(tmp_path / "masks")
        log.append([second])
    assert [trial.proposal.mask for trial in read_trials(tmp_path)] == [mask, mask]


@settings(max_examples=40)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_of_the_finished_table_is_read(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flips"
    if not folder.exists():
        search(folder, BestOfN(2))
    table = folder / "trials.parquet"
    good = table.read_bytes()
    bad = bytearray(good)
    bad[int(place * len(bad))] ^= 1 << bit
    table.write_bytes(bad)
    try:
        with pytest.raises(RunError, match=r"trials\.parquet is damaged"):
            read_trials(folder)
    finally:
        table.write_bytes(good)


def test_a_damaged_table_is_set_aside_and_generated_again(
    tmp_path: Path, whole: pd.DataFrame
) -> None:
    search(tmp_path)
    (tmp_path / "trials.parquet").write_bytes(b"PAR1")
    with pytest.warns(RunWarning, match=r"trials\.parquet cannot be used"):
        same(search(tmp_path), whole)


# -- a disk that fails -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "calls"),
    [(errno.EROFS, 0), (errno.EROFS, 1), (errno.ENOSPC, 7), (errno.EDQUOT, 30), (errno.EIO, 61)],
)
def test_a_write_that_fails_is_named_and_loses_nothing(
    tmp_path: Path,
    whole: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    calls: int,
) -> None:
    left = iter(range(calls))

    def fsync(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(RunError, match=rf"cannot be written: {os.strerror(number)}"):
            search(tmp_path)
    assert not (tmp_path / "lock").exists()
    verified_before = {t.id for t in read_trials(tmp_path)}
    generator = FakeGenerator(batch_size=4)
    same(search(tmp_path, generator=generator), whole)
    fresh = [t for t in read_trials(tmp_path) if t.id not in verified_before]
    generated = images_generated(generator)
    assert generated == sum(not isinstance(t.proposal, Look) for t in fresh)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of some hundred kilobytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", disk]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    folder = small_disk / "run"
    with pytest.raises(RunError, match="cannot be written: No space left on device"):
        search(folder, BestOfN(8))
    kept = {t.id: t.objective for t in read_trials(folder)}
    assert 0 < len(kept) < 24
    with pytest.raises(RunError, match="No space left on device"):
        search(folder, BestOfN(8))
    assert {t.id: t.objective for t in read_trials(folder)}.items() >= kept.items()
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    same(search(folder, BestOfN(8)), search(tmp_path / "whole", BestOfN(8)))


# -- clocks, merges, kills at bad moments ---------------------------------------------------------


@pytest.mark.parametrize("jump", [-(10**9), 10**9])
def test_a_clock_that_jumps_costs_nothing(broken: Path, whole: pd.DataFrame, jump: int) -> None:
    now = time.time() + jump
    for path in [*(broken / "images").iterdir(), *(broken / "heatmaps").iterdir()]:
        os.utime(path, (now, now))
    verified_before = [t for t in read_trials(broken) if not isinstance(t.proposal, Look)]
    generator = FakeGenerator(batch_size=4)
    same(search(broken, generator=generator), whole)
    generated = images_generated(generator)
    assert generated == (whole.kind != "look").sum() - len(verified_before)


@pytest.mark.parametrize(
    ("module", "limit"),
    [(table_writer, "FANOUT"), (table_writer, "MAX_LEVEL_ROWS"), (tables, "LARGE")],
)
@pytest.mark.parametrize(
    "strategy",
    [
        SeedBeam(),
        pytest.param(InpaintReroll(), marks=pytest.mark.slow),
        pytest.param(BestOfN(9), marks=pytest.mark.slow),
    ],
)
def test_merging_parts_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: Strategy, module: object, limit: str
) -> None:
    expected = search(tmp_path / "whole", strategy)
    monkeypatch.setattr(table_writer, "FANOUT", 2)
    monkeypatch.setattr(module, limit, 2)
    with pytest.raises(Killed):
        search(tmp_path / "run", strategy, DyingGenerator(4))
    levels = [part.level for part in tables.parts_of(tmp_path / "run")]
    assert max(levels) == 2
    assert len(read_trials(tmp_path / "run")) >= 10
    same(search(tmp_path / "run", strategy), expected)


def test_a_kill_between_a_merge_and_the_removal_doubles_nothing(
    broken: Path, whole: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = broken / "before"
    shutil.copytree(broken / "parts", before)
    monkeypatch.setattr(table_writer, "FANOUT", 2)
    with pytest.raises(Killed):
        search(broken, generator=DyingGenerator(1))
    for part in before.iterdir():
        shutil.move(part, broken / "parts" / part.name)
    ids = [t.id for t in read_trials(broken)]
    assert len(ids) == len(set(ids))
    shutil.rmtree(before)
    same(search(broken), whole)


@pytest.mark.parametrize("moment", range(4))
def test_a_kill_while_the_table_is_written_leaves_it_whole(
    tmp_path: Path, whole: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    search(tmp_path)
    good = (tmp_path / "trials.parquet").read_bytes()
    (tmp_path / "images" / whole.image_path[0].split("/")[1]).unlink()
    left, settle = iter(range(moment)), table_writer.Folder.settle

    def die(self: table_writer.Folder) -> None:
        settle(self)
        if (self.root / "trials.new").exists() and next(left, None) is None:
            raise Killed

    with monkeypatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        patched.setattr(table_writer.Folder, "settle", die)
        if moment == 0:
            with pytest.raises(Killed):
                search(tmp_path)
            assert (tmp_path / "trials.parquet").read_bytes() == good
        else:
            search(tmp_path)
    same(search(tmp_path), whole)


def test_drafts_of_a_killed_process_are_swept(broken: Path, whole: pd.DataFrame) -> None:
    (broken / "drafts").mkdir()
    (broken / "drafts" / "1.x.png").write_bytes(b"half")
    same(search(broken), whole)
    assert not (broken / "drafts").exists()


# -- more of the same run ------------------------------------------------------------------------


def test_more_candidates_of_a_finished_run_generate_only_the_new_ones(tmp_path: Path) -> None:
    search(tmp_path / "run", BestOfN(8))
    before = {p.name: p.read_bytes() for p in (tmp_path / "run" / "images").iterdir()}
    generator = FakeGenerator(batch_size=4)
    more = search(tmp_path / "run", BestOfN(16), generator)
    assert images_generated(generator) == 3 * 8
    same(more, search(tmp_path / "whole", BestOfN(16)))
    images = {p.name: p.read_bytes() for p in (tmp_path / "run" / "images").iterdir()}
    assert images.items() >= before.items()
    header = read_header(tmp_path / "run")
    assert header["about"]["strategy"]["n"] == 16
    assert [about["strategy"]["n"] for about in header["extended"]] == [8]
    with pytest.raises(RunError, match=r"strategy\.n: 16 there, 8 here"):
        search(tmp_path / "run", BestOfN(8))


def test_spent_seconds_carry_over(tmp_path: Path) -> None:
    def generated() -> int:
        generator = FakeGenerator(batch_size=4)
        budget = Budget(seconds=1e-9)
        run(PROMPTS, generator, FakeVerifier(), BestOfN(8), folder=tmp_path, budget=budget)
        return images_generated(generator)

    assert generated() == 12, "a batch a prompt"
    assert generated() == 0
