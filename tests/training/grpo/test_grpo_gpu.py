"""What only a GPU has: bfloat16 products beside float32 weights, captured rollouts in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tts_verifier.training.common.run_folder import read_metrics
from tts_verifier.training.grpo.grpo import grpo

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.usefixtures("even_tokens")
@pytest.mark.parametrize("tower", [False, True])
def test_the_policy_starts_as_its_reference_and_as_the_rollout_saw_it(
    tower: bool, doctor: Path, ratings: Path, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"steps": 6, "prompts": 4, "group": 8, "max_new_tokens": 40}
    keys |= {"init": str(doctor), "data": str(ratings), "learning_rate": 1e-2, "warm_up": 0.0}
    keys |= {"examples": 0}
    grpo(output=str(tmp_path / "run"), train_tower=tower, **keys)
    rows = read_metrics(tmp_path / "run")
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert max(row["rollout_gap"] for row in rows) < 0.1
    assert rows[-1]["kl"] > 1e-4
    assert rows[-1]["reward"] > rows[0]["reward"]
    assert not any(row["skipped"] for row in rows)


@pytest.mark.usefixtures("even_tokens")
def test_a_stopped_run_goes_on_from_its_weights(
    doctor: Path, ratings: Path, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"steps": 3, "prompts": 2, "max_new_tokens": 8}
    keys |= {"init": str(doctor), "data": str(ratings), "output": str(tmp_path), "block": 1}
    keys |= {"examples": 0}
    grpo(minutes=1e-9, **keys)
    grpo(**keys)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[1]["rollout_gap"] < 0.1
