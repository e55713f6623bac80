"""A candidate that fails is a row with its reason, and the run goes on."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tts_verifier import run
from tts_verifier.errors import InputError, RunError, RunWarning
from tts_verifier.identity import seed_for
from tts_verifier.runner.retry import with_retry
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Job, Sample, Verdict

RED = "a red circle"
BAD = seed_for(0, RED, 2)


class Breaks(FakeGenerator):
    """Raises for one seed, always or the first time only."""

    def __init__(self, times: int = 99) -> None:
        super().__init__(batch_size=4)
        self.times = times

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        if self.times and any(job.proposal.seed == BAD for job in jobs):
            self.times -= 1
            self.trace.append(f"!{len(jobs)}")
            raise ValueError("decoder:\n  no luck")
        return super().generate(jobs)


class Chokes(FakeVerifier):
    """Raises for pictures of little red."""

    def verify(self, images: Any, prompts: Any, **options: Any) -> list[Verdict]:
        if any(image.getpixel((0, 0))[0] < 128 for image in images):
            raise RuntimeError
        return super().verify(images, prompts, **options)


def test_one_that_breaks_the_generator_is_a_row_and_its_batch_is_generated(tmp_path: Path) -> None:
    generator = Breaks()
    with pytest.warns(RunWarning, match=r"\(ValueError: decoder: no luck\); the run goes"):
        result = run([RED], generator, FakeVerifier(), BestOfN(6), folder=tmp_path)
    assert generator.trace == ["!4", "g1", "g1", "!1", "g1", "g2"]
    errors = [t.error for t in result.trials]
    assert errors == ["", "", "ValueError: decoder: no luck", "", "", ""]
    table = pd.read_parquet(tmp_path / "trials.parquet")
    row = table[table.error.notna()].iloc[0]
    assert row.error == "ValueError: decoder: no luck"
    assert row[["objective", "aesthetics"]].isna().all(), "never a silent 0"
    whole = run([RED], FakeGenerator(), FakeVerifier(), BestOfN(6))
    assert [t.objective for t in result.trials if not t.error] == [
        t.objective for t in whole.trials if t.proposal.seed != BAD
    ]


@pytest.mark.parametrize("n", [6, 3, 1])
def test_one_that_fails_in_company_only_is_generated_alone_with_the_same_seed(n: int) -> None:
    result = run([RED], Breaks(times=1), FakeVerifier(), BestOfN(n))
    whole = run([RED], FakeGenerator(), FakeVerifier(), BestOfN(n))
    assert [(t.id, t.objective) for t in result.trials] == [
        (t.id, t.objective) for t in whole.trials
    ]


def test_one_that_breaks_the_verifier_is_a_row_with_its_image() -> None:
    with pytest.warns(RunWarning, match="RuntimeError"):
        result = run([RED], FakeGenerator(), Chokes(), BestOfN(8))
    failed = [t for t in result.trials if t.error]
    assert 0 < len(failed) < 8
    assert {t.error for t in failed} == {"RuntimeError"}
    assert all(t.image is not None and t.scores == {} for t in failed)
    assert all(math.isnan(t.objective) for t in failed)
    assert result.choices["0000"].trial not in failed


def test_a_judge_that_breaks_leaves_its_columns_empty() -> None:
    with pytest.warns(RunWarning, match="RuntimeError"):
        result = run([RED], FakeGenerator(), FakeVerifier(), BestOfN(8), judge=Chokes())
    assert {len(t.judge) for t in result.trials} == {0, 4}
    assert not any(t.error for t in result.trials)


@pytest.mark.parametrize("error", [InputError("rule"), RunError("disk"), KeyboardInterrupt()])
def test_what_the_user_can_fix_is_not_tried_again(error: BaseException) -> None:
    calls = []

    def work(items: Sequence[int]) -> list[int]:
        calls.append(items)
        raise error

    with pytest.raises(type(error)):
        with_retry(work, [1, 2], lambda item, why: 0)
    assert calls == [[1, 2]]
