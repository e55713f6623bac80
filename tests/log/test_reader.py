"""A continued run finds its rows prompt by prompt, and a result keeps little of them in memory."""

import gc
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import InpaintReroll

from tts_verifier import run
from tts_verifier.errors import RunError
from tts_verifier.interfaces import Strategy
from tts_verifier.log import open_log, read_trials
from tts_verifier.log.header import read_binding
from tts_verifier.log.resume import LoggedTrials
from tts_verifier.log.storage import table_writer
from tts_verifier.log.storage.files import Folder
from tts_verifier.runner import RunResult
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Draw, Job, Prompt, Trial

ROWS = st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.floats(0, 1))


def trial(prompt: str, index: int, objective: float) -> Trial:
    return Trial(f"{prompt}{index}", Prompt(prompt, prompt), 0, Draw(index), 1.0, None, objective)


@settings(max_examples=15)
@given(st.lists(st.lists(ROWS, min_size=1, max_size=9), max_size=5), st.integers(1, 9))
def test_of_rows_with_one_id_the_last_counts(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[str, int, float]]], size: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    last = {f"{prompt}{index}": value for batch in batches for prompt, index, value in batch}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(table_writer, "ROW_GROUP", size)
        with open_log(folder, {}, {}) as log:
            for batch in batches:
                log.append([trial(*row) for row in batch])
        logged = LoggedTrials(Folder(folder), read_binding(folder))
        assert logged.counts() == Counter(prompt for batch in batches for prompt, _, _ in batch)
        jobs = [Job(Prompt(p, p), Draw(7), id=f"{p}{i}") for p in "abcd" for i in range(5)]
        trials = [logged.of_prompt(job.prompt.id).trial(job) for job in jobs]
        assert {t.id: t.objective for t in trials if t} == last
        assert {t.proposal for t in trials if t} <= {Draw(7)}, "the job has the proposal"
        assert {t.id: t.objective for t in read_trials(folder)} == last
        with open_log(folder, {}, {}) as log:
            log.finish({"a0"})
    table = pd.read_parquet(folder / "trials.parquet")
    assert dict(zip(table.trial_id, table.objective, strict=True)) == last
    assert set(table.trial_id[table.chosen]) == {"a0"} & last.keys()


def summary_lines(result: RunResult) -> list[str]:
    """All that the summaries say."""
    lines = []
    for row in result.summaries:
        lines.append(f"{row.prompt} {row.candidates} {row.failed} {row.tied} {row.best}")
        for pick in (row.first, row.chosen):
            image = pick and pick.image and pick.image.load().tobytes()
            lines.append(str(pick and (pick.id, pick.objective, pick.scores, pick.judge)))
            lines.append(f"{pick and pick.error} {image}")
    return lines


@pytest.mark.parametrize("strategy", [BestOfN(5), InpaintReroll()])
@pytest.mark.parametrize("with_judge", [True, False])
def test_summaries_are_the_same_with_a_log_and_without(
    tmp_path: Path, strategy: Strategy, with_judge: bool
) -> None:
    def search(folder: Path | None) -> RunResult:
        generator = FakeGenerator(fails=lambda job: getattr(job.proposal, "seed", 1) % 3 == 0)
        verifier = FakeVerifier(unparsable=lambda image, _: image.getpixel((0, 0))[0] < 64)
        judge = FakeVerifier(lambda image, _: {"passed": image.getpixel((1, 1))[0] / 255})
        prompts = ["a red circle", "a blue star", "three rings"]
        judge_or_none = judge if with_judge else None
        return run(prompts, generator, verifier, strategy, folder=folder, judge=judge_or_none)

    once, again = search(tmp_path), search(tmp_path)
    assert summary_lines(once) == summary_lines(again) == summary_lines(search(None))


def test_a_result_whose_folder_is_gone_says_so(tmp_path: Path) -> None:
    result = run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(2), folder=tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    for name in ("summaries", "trials", "images", "choices"):
        with pytest.raises(RunError, match="must still hold what the run wrote, and lacks trial"):
            getattr(result, name)


def test_a_result_is_found_from_another_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(2), folder="run")
    monkeypatch.chdir("/")
    assert list(result.images) == ["0000"]


@pytest.mark.slow
def test_a_result_holds_little_of_what_is_in_the_log(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        prompts = [f"image {i}" for i in range(2)]
        result = run(prompts, FakeGenerator(), FakeVerifier(), BestOfN(64), folder=tmp_path)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        del result
        gc.collect()
        nbytes = before - tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 2 * 64 * 17 < nbytes < 2 * 64 * 50
