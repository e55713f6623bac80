"""A run folder is read in several threads while a run writes it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from threads import at_once

from tts_verifier.log import is_running, read_picks, read_rows, read_trials
from tts_verifier.log.storage import tables
from tts_verifier.runner import run
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier

PROMPTS = [f"picture {i}" for i in range(12)]


def start(folder: Path) -> Any:
    return run(PROMPTS, FakeGenerator(batch_size=2), FakeVerifier(), BestOfN(6), folder=folder)


def test_what_is_read_while_a_run_writes_is_whole(tmp_path: Path) -> None:
    result = run(PROMPTS, FakeGenerator(batch_size=2), FakeVerifier(), BestOfN(6))
    objectives = {trial.id: trial.objective for trial in result.trials}
    ended = threading.Event()

    def write() -> int:
        try:
            return len(start(tmp_path / "run").trials)
        finally:
            ended.set()

    def read() -> int:
        most, last = 0, False
        while not last:
            last = ended.is_set()
            if not (tmp_path / "run" / "header.json").exists():
                continue
            trials = read_trials(tmp_path / "run")
            assert len(trials) >= most, "a trial that was there is gone"
            most = len(trials)
            # JSON and Parquet keep a float's digits.
            assert all(trial.objective == objectives[trial.id] for trial in trials)
            assert all(t.image is not None and t.image.load().size == (16, 16) for t in trials[-2:])
            picks = read_picks(tmp_path / "run", [trial.id for trial in trials])
            assert len(picks) == most
            assert len(read_rows(tmp_path / "run")) >= most
            is_running(tmp_path / "run")
        return most

    assert at_once([write, read, read, read]) == [72] * 4


def test_picks_are_read_again_if_a_part_was_merged_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = start(tmp_path / "run")
    ids = [trial.id for trial in result.trials]
    real, failures = tables.open_table, [FileNotFoundError("merged")]

    def open_table(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*arguments)

    monkeypatch.setattr(tables, "open_table", open_table)
    assert set(read_picks(tmp_path / "run", ids)) == set(ids)


def test_results_may_be_read_in_threads(tmp_path: Path) -> None:
    result = start(tmp_path / "run")
    for trials, images in at_once([lambda: (result.trials, result.images)] * 4):
        assert [t.id for t in trials] == [t.id for t in result.trials]
        assert list(images) == list(result.images)


def test_runs_of_several_threads_may_share_their_parts(tmp_path: Path) -> None:
    generator, verifier = FakeGenerator(batch_size=3), FakeVerifier()

    def search(seed: int) -> Any:
        return run(PROMPTS, generator, verifier, BestOfN(3), seed=seed, folder=tmp_path / f"{seed}")

    alone = {s: run(PROMPTS, generator, verifier, BestOfN(3), seed=s).trials for s in range(4)}
    for seed, result in enumerate(at_once([lambda s=s: search(s) for s in range(4)])):
        assert [t.id for t in result.trials] == [t.id for t in alone[seed]]
        assert [t.objective for t in result.trials] == [t.objective for t in alone[seed]]
