"""The example of the rewards in TRL's own trainer runs, with maps from its rollout."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

from tts_verifier.training.grpo.rewards import REWARDS

EXAMPLE = Path(__file__).parents[3] / "examples" / "training" / "trl_grpo.py"
for name in ("trl", "datasets"):
    pytest.importorskip(name, reason="pip install trl")
pytestmark = pytest.mark.filterwarnings("ignore")


def test_trl_trains_on_the_twelve_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spec = importlib.util.spec_from_file_location("trl_grpo", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    trainer = example.main(["--steps", "1"])
    logged = next(entry for entry in trainer.state.log_history if "reward" in entry)
    means = [logged[f"rewards/{reward}/mean"] for reward in REWARDS]
    assert math.isclose(sum(means), logged["reward"], abs_tol=1e-4)
    # The maps differ between the replies of a prompt, so there is something to learn.
    assert logged["frac_reward_zero_std"] < 1
    assert logged["grad_norm"] > 0
