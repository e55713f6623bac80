"""Samples that one process generated and did not verify are verified by the next."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from cases import mostly_slow
from killing import DyingVerifier, Killed, images_generated
from searches import InpaintReroll, SeedBeam

from tts_verifier import run
from tts_verifier.errors import RunWarning
from tts_verifier.interfaces import Strategy
from tts_verifier.log import read_trials
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Look

PROMPTS = ["a red circle", "a blue star", "three rings"]


def search(
    folder: Path,
    strategy: Strategy,
    verifier: FakeVerifier,
    *,
    overlap: bool = True,
    batch_size: int = 4,
) -> int:
    """Runs, to its end or its death, and returns how many images were generated."""
    generator = FakeGenerator(batch_size=batch_size)
    with contextlib.suppress(Killed):
        run(PROMPTS, generator, verifier, strategy, folder=folder, overlap=overlap)
    return images_generated(generator)


def outcome(folder: Path) -> pd.DataFrame:
    table = pd.read_parquet(folder / "trials.parquet").sort_values("trial_id")
    return table.drop(columns=["generate_seconds", "verify_seconds"]).reset_index(drop=True)


@pytest.mark.parametrize("strategy", [BestOfN(8), SeedBeam(), InpaintReroll()])
@pytest.mark.parametrize("overlap", mostly_slow([True, False], quick=[True]))
def test_what_waited_is_verified_and_not_generated_again(
    tmp_path: Path, strategy: Strategy, overlap: bool
) -> None:
    everything = search(tmp_path / "whole", strategy, FakeVerifier())
    folder = tmp_path / "run"
    generated = search(folder, strategy, DyingVerifier(2))
    verified_before = sum(not isinstance(t.proposal, Look) for t in read_trials(folder))
    assert verified_before == 8 < generated
    assert list((folder / "waiting").iterdir())
    assert generated + search(folder, strategy, FakeVerifier(), overlap=overlap) == everything
    pd.testing.assert_frame_equal(outcome(folder), outcome(tmp_path / "whole"))
    assert not list((folder / "waiting").iterdir())


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_notes_outlive_a_process_that_verified_some_of_them(
    tmp_path: Path, batch_size: int
) -> None:
    everything = search(tmp_path / "whole", BestOfN(8), FakeVerifier())
    generated = search(tmp_path / "run", BestOfN(8), DyingVerifier(0))
    generated += search(tmp_path / "run", BestOfN(8), DyingVerifier(1), batch_size=batch_size)
    assert generated + search(tmp_path / "run", BestOfN(8), FakeVerifier()) == everything


def lose(folder: Path) -> None:
    shutil.rmtree(folder / "images")


def change(folder: Path) -> None:
    for path in (folder / "images").iterdir():
        path.write_bytes(path.read_bytes()[:50])


def garble(folder: Path) -> None:
    for path in (folder / "waiting").iterdir():
        path.write_text("[1")


def distort(folder: Path) -> None:
    for path in (folder / "waiting").iterdir():
        path.write_text(path.read_text().replace('"image": [', '"image": [1, '))


@pytest.mark.parametrize("harm", [lose, change, garble, distort])
def test_what_is_gone_or_changed_is_generated_again(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    everything = search(tmp_path / "whole", BestOfN(8), FakeVerifier())
    assert search(tmp_path / "run", BestOfN(8), DyingVerifier(0)) < everything
    harm(tmp_path / "run")
    warned = pytest.warns(RunWarning, match="it holds no notes")
    with warned if harm is garble else contextlib.nullcontext():
        assert search(tmp_path / "run", BestOfN(8), FakeVerifier()) == everything
    pd.testing.assert_frame_equal(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def test_seconds_of_what_waited_are_not_forgotten(tmp_path: Path) -> None:
    search(tmp_path, BestOfN(8), DyingVerifier(0))
    search(tmp_path, BestOfN(8), FakeVerifier())
    assert all(trial.cost.generate_seconds > 0 for trial in read_trials(tmp_path))


@pytest.mark.parametrize(
    "odd",
    [
        {"network_evaluations": 1.5},
        {"network_evaluations": 2**70},
        {"vae_passes": -1},
        {"verifier_calls": True},
        {"generate_seconds": float("inf")},
        {"progress": 2},
    ],
    ids=str,
)
def test_a_note_of_amounts_that_no_row_takes_is_not_used(tmp_path: Path, odd: dict) -> None:
    everything = search(tmp_path, BestOfN(4), DyingVerifier(0))
    for path in (tmp_path / "waiting").iterdir():
        notes = json.loads(path.read_text())
        for note in notes.values():
            (note if "progress" in odd else note["cost"]).update(odd)
        path.write_text(json.dumps(notes))
    # All of them are generated again.
    assert search(tmp_path, BestOfN(4), FakeVerifier()) >= everything
