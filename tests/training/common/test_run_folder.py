"""The folder of a training run, which may come from somebody else."""

from __future__ import annotations

import errno
import json
import os
import pickle
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tts_verifier.errors import RunError
from tts_verifier.training.common.run_folder import RunFolder, read_metrics, write_metrics
from tts_verifier.training.common.step_guard import StepGuard

SETTINGS = {"seed": 1}


def opened(folder: Path, guard: StepGuard | None = None) -> RunFolder:
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(torch.nn.Linear(2, 2))
    return RunFolder(folder, SETTINGS, accelerator, kept={"guard": guard or StepGuard()})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the state after three steps, one of which was skipped."""
    guard = StepGuard()
    run = opened(tmp_path / "run", guard)
    guard.allows(0, float("nan"), 1.0)
    run.record({"step": 0.0, "total": 1.0})
    run.save(3)
    return tmp_path / "run"


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def test_a_run_goes_on_with_its_counts(saved: Path) -> None:
    guard = StepGuard()
    assert opened(saved, guard).resume() == 3
    assert guard.skipped == guard.in_a_row == 1


def test_a_state_that_is_there_is_kept_with_new_metrics(saved: Path) -> None:
    run = opened(saved)
    assert run.resume() == 3
    run.record({"step": 3.0, "total": 2.0})
    run.save(3)
    assert [path.name for path in (saved / "state").iterdir()] == ["00000003"]
    assert [row["step"] for row in read_metrics(saved)] == [0, 3]


@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "random_states_0.pkl"])
def test_a_pickle_in_a_state_never_runs(saved: Path, tmp_path: Path, name: str) -> None:
    (saved / "state" / "00000003" / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    # accelerate does without random states that it cannot read.
    with nullcontext() if "random" in name else pytest.raises(RunError, match="cannot be read"):
        opened(saved).resume()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["{", "[]", '{"guard": 3}', '{"guard": {"skipped": "x"}}'])
def test_counts_that_cannot_be_read_are_named(saved: Path, damage: str) -> None:
    (saved / "state" / "00000003" / "kept.json").write_text(damage)
    with pytest.raises(RunError, match=r"00000003 must be the state of this run, .* Remove it"):
        opened(saved).resume()


@pytest.mark.parametrize("name", ["state", "metrics", "checkpoint", "state/00000001"])
def test_nothing_is_deleted_or_written_through_a_link(
    saved: Path, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "photos"
    (outside / "00000001").mkdir(parents=True)
    write_metrics(outside, [{"step": 9.0}])
    before = sorted(outside.rglob("*"))
    if (saved / name).exists():
        (saved / name).rename(tmp_path / "away")
    (saved / name).symlink_to(outside)
    with pytest.raises(RunError, match="must hold files, not links"):
        opened(saved).save(4)
    assert sorted(outside.rglob("*")) == before


def test_files_that_no_run_writes_are_left_alone(saved: Path) -> None:
    for name in ("state/²", "metrics/mine.parquet"):
        (saved / name).mkdir()
    opened(saved).save(4)
    assert opened(saved).resume() == 4
    assert all((saved / name).is_dir() for name in ("state/²", "metrics/mine.parquet"))


@pytest.mark.parametrize("content", ["[" * 5000, "[1]", '{"seed": "\\ud800"}', None])
def test_settings_that_cannot_be_read_are_named(saved: Path, content: str | None) -> None:
    (saved / "run.json").unlink()
    if content is None:
        os.mkfifo(saved / "run.json")
    else:
        (saved / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json can"):
        opened(saved)


def test_a_state_of_before_says_what_to_remove(saved: Path) -> None:
    state = saved / "state" / "00000003"
    (state / "kept.json").unlink()
    with pytest.raises(RunError, match=r"00000003 must be the state of this run"):
        opened(saved).resume()
    assert json.loads((saved / "run.json").read_text()) == SETTINGS


def test_a_full_disk_leaves_the_state_before(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened(saved)

    def full(folder: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Accelerator, "save_state", lambda self, folder: full(folder))
    with pytest.raises(RunError, match=r"state after 4 steps.*No space left.*Is the disk full\?"):
        run.save(4)
    monkeypatch.undo()
    run.record({"step": 4.0, "loss": 1.0})
    monkeypatch.setattr("pyarrow.parquet.write_table", lambda table, path: full(path))
    with pytest.raises(RunError, match=r"must take metrics, and could not: .*No space left"):
        run.save_metrics()
    monkeypatch.undo()
    assert opened(saved).resume() == 3


def test_metrics_that_are_damaged_are_named(saved: Path) -> None:
    path = saved / "metrics" / "00000000.parquet"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunError, match=r"00000000\.parquet must have metrics of this run"):
        read_metrics(saved)
