"""On a GPU drawing and gradients are CUDA graphs; they give what a CPU gives, but for rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tts_verifier.training.common.run_folder import read_metrics
from tts_verifier.training.flow.flow import flow

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("loss", ["policy", "awm", "nft"])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_on_a_gpu_trains_and_goes_on(
    loss: str, rank: int, keys: dict[str, Any], tmp_path: Path
) -> None:
    keys |= {"loss": loss, "lora_rank": rank, "steps": 4, "advantage": "dense", "average": 0.5}
    flow(**keys)
    rows = read_metrics(tmp_path / "run")
    assert all(row["gradient"] > 0 and row["skipped"] == 0 for row in rows)
    if loss == "policy":
        assert rows[0]["distance"] < 1e-3
    parts = keys | {"output": str(tmp_path / "parts")}
    flow(**parts, minutes=1e-9)
    flow(**parts)
    rewards = [row["reward"] for row in read_metrics(tmp_path / "parts")]
    assert rewards == pytest.approx([row["reward"] for row in rows], abs=1e-3)


def test_graphs_give_the_gradients_of_plain_steps(keys: dict[str, Any], tmp_path: Path) -> None:
    keys |= {"loss": "nft", "draw_ahead": False, "lora_rank": 2}
    flow(**keys)
    row = read_metrics(tmp_path / "run")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tts_verifier.training.common.cuda_graph.CapturedStep.__call__",
            lambda self, *inputs: self._step(*inputs),
        )
        flow(**keys | {"output": str(tmp_path / "plain")})
    plain = read_metrics(tmp_path / "plain")[0]
    for name in ("reward", "total", "gradient"):
        assert plain[name] == pytest.approx(row[name], rel=2e-2)
    one, other = (
        load_file(tmp_path / name / "checkpoint/pytorch_lora_weights.safetensors")
        for name in ("run", "plain")
    )
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-2, atol=1e-3)
