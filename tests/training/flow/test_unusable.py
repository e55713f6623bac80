"""What cannot be trained is refused with its rule, and before anything is drawn where possible."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch

from tts_verifier import registry
from tts_verifier.errors import (
    CheckpointError,
    InputError,
    RecipeError,
    RunError,
    RunWarning,
    UnsupportedError,
)
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.testing import FakeVerifier
from tts_verifier.training.common.run_folder import read_metrics
from tts_verifier.training.entries import run_entry
from tts_verifier.training.flow.flow import failing_together, flow
from tts_verifier.training.flow.rewards import VerifierSpec
from tts_verifier.types import Verdict


class WithoutMaps(FakeVerifier):
    details = ("score",)


class Forgets(FakeVerifier):
    """Gives no verdict on the last picture."""

    def verify(self, *args: Any, **kwargs: Any) -> list[Verdict]:
        return super().verify(*args, **kwargs)[:-1]


class Silent(FakeVerifier):
    """Gives no list."""

    def verify(self, *args: Any, **kwargs: Any) -> Any:
        return None


class NeverKnows(FakeVerifier):
    def __init__(self) -> None:
        super().__init__(unparsable=lambda image, prompt: True)


class SeldomKnows(FakeVerifier):
    def __init__(self) -> None:
        super().__init__(unparsable=lambda image, prompt: bool(np.asarray(image).sum() % 2))


class GoesAway(FakeVerifier):
    """Serves one batch, and then is gone."""

    def verify(self, *args: Any, **kwargs: Any) -> list[Verdict]:
        if self.trace:
            raise RunError("the server at http://localhost:1 does not answer")
        return super().verify(*args, **kwargs)


class Breaks(GoesAway):
    """Serves one batch, and then has a fault of its own."""

    def verify(self, *args: Any, **kwargs: Any) -> list[Verdict]:
        if self.trace:
            raise KeyError("overall")
        return super().verify(*args, **kwargs)


@pytest.fixture(autouse=True)
def _plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {
        name: f"{__name__}:{kind.__name__}"
        for name, kind in {
            "no-maps": WithoutMaps,
            "never": NeverKnows,
            "seldom": SeldomKnows,
            "gone": GoesAway,
            "breaks": Breaks,
            "forgets": Forgets,
            "silent": Silent,
            "redness": Redness,
        }.items()
    }
    known: Mapping[str, Mapping[str, str]] = registry.BUILT_IN
    added = {**known, "verifier": {**known["verifier"], **here}}
    monkeypatch.setattr(registry, "BUILT_IN", added)


def rewarded_by(keys: dict[str, Any], verifier: str) -> dict[str, Any]:
    return keys | {"rewards": [{"verifier": verifier}]}


def with_config(generator: Path, folder: Path, part: str, **changed: Any) -> str:
    """A copy of a pipeline with another config of one part."""
    shutil.copytree(generator, folder)
    path = folder / part
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return str(folder)


def test_a_pipeline_that_predicts_noise_is_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    tiny_pipelines.sd15(tmp_path / "files").save_pretrained(tmp_path / "sd15")
    with pytest.raises(UnsupportedError, match=r"predict a velocity.* got StableDiffusionPipeline"):
        flow(**keys | {"init": str(tmp_path / "sd15")})


def test_a_scheduler_that_predicts_otherwise_is_refused(
    keys: dict[str, Any], generator: Path, tmp_path: Path
) -> None:
    part = "scheduler/scheduler_config.json"
    init = with_config(generator, tmp_path / "one", part, prediction_type="epsilon")
    with pytest.raises(UnsupportedError, match="the scheduler's prediction is 'epsilon'"):
        flow(**keys | {"init": init})
    init = with_config(generator, tmp_path / "two", part, invert_sigmas=True)
    with pytest.raises(UnsupportedError, match="with invert_sigmas"):
        flow(**keys | {"init": init})


def test_a_scheduler_that_is_not_flow_matching_is_refused(
    keys: dict[str, Any], generator: Path, tmp_path: Path
) -> None:
    init = with_config(
        generator, tmp_path / "ddim", "model_index.json", scheduler=["diffusers", "DDIMScheduler"]
    )
    scheduler = tmp_path / "ddim/scheduler/scheduler_config.json"
    scheduler.write_text('{"_class_name": "DDIMScheduler"}')
    with pytest.raises(UnsupportedError, match=r"for flow matching, .* got DDIMScheduler"):
        flow(**keys | {"init": init})


def test_maps_must_be_there_for_advantages_of_places(keys: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs the maps misalignment, artifact, and no verdict"):
        flow(**rewarded_by(keys, "no-maps"), advantage="dense")
    with pytest.raises(InputError, match="the verifier gives artifact, misalignment") as error:
        flow(**keys | {"output": str(tmp_path / "two")}, advantage="mask", maps={"blur": 1.0})
    assert error.value.argument == "advantage"
    with pytest.raises(InputError, match="all weights of maps are 0"):
        flow(**keys, advantage="dense", maps={"artifact": 0.0})


class Redness(FakeVerifier):
    """Gives a score of its own."""

    score_names = None

    def verify(self, *args: Any, **kwargs: Any) -> list[Verdict]:
        return [Verdict({"redness": 0.5}) for _ in args[0]]


def test_a_verifier_with_other_scores_than_its_objective_is_told(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"The verifier says of one: 'Verdict\(.*redness 0\.500"):
        flow(**rewarded_by(keys, "redness"))
    judged = {"judges": [{"verifier": "redness"}], "held_out": ["a bus"], "evaluate_every": 1}
    with pytest.warns(RunWarning, match="judge redness gives no held-out picture its objective; o"):
        flow(**keys | judged | {"output": str(tmp_path / "judged"), "steps": 1})


@pytest.mark.parametrize("key", ["rewards", "judges"])
def test_a_verifier_that_cannot_be_made_is_placed_in_the_config(
    key: str, keys: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=f"^{key}: The verifier 'gone.py:Mine' must") as error:
        flow(**keys | {key: [{"verifier": "gone.py:Mine"}]})
    assert error.value.argument == key


def test_rewards_that_are_no_numbers_stop_a_run(keys: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"step 0 has one\. The verifier says of one: 'no idea'"):
        flow(**rewarded_by(keys, "never"))
    keys |= {"output": str(tmp_path / "other")}
    flow(**rewarded_by(keys, "seldom") | {"group": 8, "steps": 1})
    (row,) = read_metrics(tmp_path / "other")
    assert 0 < row["unscored_share"] < 1
    assert 0 < row["reward"] < 1


def test_a_verifier_owes_a_verdict_for_each_picture(keys: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Forgets must return .* each of 6 images.* returned 5"):
        flow(**rewarded_by(keys, "forgets"))
    with pytest.raises(RunError, match=r"Silent must return .* it returned a NoneType"):
        flow(**rewarded_by(keys, "silent") | {"output": str(tmp_path / "other")})


KILLED = """
import os

import numpy as np

from tts_verifier.training.flow.rewards import LoadedVerifier, VerifierSpec

verifier = LoadedVerifier(VerifierSpec("fake", processes=1), "cpu")
print(len(verifier.verify(np.zeros((1, 8, 8, 3), np.uint8), ["a cat"])), flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_processes_of_verifiers_do_not_outlive_a_run_that_was_killed() -> None:
    # It returns when all processes that may write have ended.
    run = subprocess.run(
        [sys.executable, "-c", KILLED], capture_output=True, timeout=120, check=False
    )
    assert run.stdout == b"1\n"


def test_held_out_captions_that_are_trained_are_counted(keys: dict[str, Any]) -> None:
    with pytest.warns(RunWarning, match="1 of 2 held-out captions are trained too, such as"):
        flow(**keys | {"steps": 1, "evaluate_every": 1, "held_out": ["a cat", "a bus"]})


@pytest.mark.parametrize("ahead", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_verifier_that_goes_away_leaves_what_was_trained(
    ahead: bool, keys: dict[str, Any], generator: Path, tmp_path: Path
) -> None:
    gone = rewarded_by(keys, "gone") | {"draw_ahead": ahead, "steps": 5, "lora_rank": 2}
    # The state after the step is there already when the next one fails.
    gone["save_minutes"] = 1e-9
    with pytest.raises(RunError, match="does not answer"):
        flow(**gone)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [0]
    assert [p.name for p in (tmp_path / "run/state").iterdir()] == ["00000001"]
    assert len(list((tmp_path / "run/checkpoint").iterdir())) == 1
    # A server that is back serves one batch more.
    with pytest.raises(RunError, match="does not answer"):
        flow(**gone)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [0, 1]


class AnotherFails:
    """An accelerator of two processes, of which the other one fails."""

    device = "cpu"

    def reduce(self, failed: torch.Tensor, how: str) -> torch.Tensor:
        return failed + 1


def test_no_process_waits_for_one_whose_verifier_failed() -> None:
    processes: Any = AnotherFails()
    with pytest.raises(RunError, match="of another process failed"), failing_together(processes):
        pass
    with pytest.raises(RunError, match="mine"), failing_together(processes):
        raise RunError("mine")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rewards": [{"verifier": "breaks"}]}, "A verifier failed: KeyError: 'overall'"),
        (
            {"judges": [{"verifier": "gone"}], "held_out": ["a bus"], "evaluate_every": 1},
            "does not answer",
        ),
    ],
    ids=["verifier", "judge"],
)
def test_any_fault_of_a_verifier_or_judge_leaves_what_was_trained(
    changed: dict[str, Any], message: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=message):
        flow(**keys | {"steps": 5, "lora_rank": 2} | changed)
    assert [p.name for p in (tmp_path / "run/state").iterdir()] == ["00000001"]


def test_peft_is_asked_for_where_it_is_needed(
    keys: dict[str, Any], generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else find(name)
    )
    with pytest.raises(InputError, match=r"lora_rank needs peft.*tts-verifier\[train\]"):
        flow(**keys, lora_rank=2)
    with pytest.raises(InputError, match=r"lora needs peft.*tts-verifier\[train\]"):
        DiffusersGenerator(str(generator), lora=tmp_path)


def test_adapters_that_cannot_be_used_are_refused(generator: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Adapters are a .safetensors file, or a folder"):
        DiffusersGenerator(str(generator), lora=tmp_path)
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="do not fit the model"):
        DiffusersGenerator(str(generator), lora=tmp_path)
    loaded = tiny_pipelines.sd3(tmp_path / "files")
    with pytest.raises(InputError, match=r"pipe\.load_lora_weights"):
        DiffusersGenerator(loaded, lora=tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"group": 1}, "group must be at least 2, got 1"),
        ({"prompts": 0}, "prompts must be at least 1, got 0"),
        ({"prompts": 3, "updates": 2}, "shared equally by updates, got 2"),
        ({"block": 4}, "2 captions of 3 pictures by 1 processes and 1 updates, in blocks of 4"),
        ({"steps_drawn": 1}, "so steps_drawn must be at least 2, got 1"),
        ({"window": 3}, "window must be at most 2, the steps that it is taken from, got 3"),
        ({"window": 1, "trained_steps": 2}, "trained_steps must be at most 1"),
        ({"sampler": "cps", "noise": 1.5}, "cps takes noise of at most 1, got 1.5"),
        ({"noise": 0.0}, "noise must be above 0, got 0.0"),
        ({"guidance": 0.5}, "guidance must be at least 1, got 0.5"),
        ({"average": 1.5}, r"average must be in \[0, 1\], got 1.5"),
        ({"average": 1.0}, "average must be below 1: with 1 the averaged weights.* never change"),
        ({"loss": "nft", "window": 5}, "window chooses steps that draw noise, and loss: nft"),
        ({"loss": "awm", "trained_steps": 1}, "trained_steps chooses steps that draw noise"),
        ({"embedded_guidance": -1.0}, "embedded_guidance must be at least 0, got -1"),
        ({"weight_decay": float("nan")}, "weight_decay must be finite and at least 0, got nan"),
        ({"max_sequence_length": 10**6}, "max_sequence_length must be at most 512.* got 1000000"),
        ({"steps_drawn": 10**6}, "steps_drawn must be at most 1000, .* got 1000000"),
        ({"loss": "nft", "times": 10**6}, "times must be at most 1000, the levels of noise"),
        ({"group": 10**6}, "group must be at most 32768, so that a step of 2 prompts has 65536 r"),
        ({"prompts": 10**6}, "prompts must be at most 32768, so that a step has 65536 rows"),
        ({"block": 10**6}, "in blocks of 1000000 pictures"),
        ({"updates": 10**6}, "shared equally by updates, got 1000000"),
        ({"evaluate_captions": 10**6}, "evaluate_captions must be at most 65536"),
        ({"lora_rank": 10**6}, "lora_rank must be at most 16, the rank of the largest layer"),
        (
            {"rewards": [{"verifier": "fake", "processes": 10**6}]},
            "rewards: processes must be at most [0-9]+, 32 for each core .* got 1000000",
        ),
        ({"evaluate_every": 1}, "evaluate_every draws held-out captions, so 1 needs held_out"),
        ({"stop": {"unscored_share": 1.0}}, "unscored_share must be a share below 1, .* got 1.0"),
        (
            {
                "stop": {"judge": 1},
                "evaluate_every": 1,
                "held_out": ["a bus"],
                "judges": [{"verifier": "fake", "objective": {"overall": 1.0}, "processes": 1}],
            },
            "stop.judge needs a first judge that is no reward",
        ),
        ({"rewards": [{"verifier": ""}]}, "each table of rewards needs the key verifier"),
        ({"rewards": [{"verifier": "fake", "weight": 0}]}, "a weight of 0 rewards nothing, and"),
        ({"rewards": [{"verifier": "fake", "objective": {}}]}, "rewards: An objective needs fin"),
        (
            {"lora_rank": 2, "lora_targets": ["transformer_blocks.0"]},
            "lora_targets must be layers that peft can adapt, got transformer_blocks.0: Target",
        ),
        ({"rewards": []}, "rewards must name at least one verifier"),
        ({"rewards": [{"name": "fake"}]}, "rewards has the unknown key 'name'"),
        ({"rewards": [{"weight": 1.0}]}, "each table of rewards needs the key verifier"),
        ({"rewards": [{"verifier": "fake", "detail": "all"}]}, "detail must be score or diagnose"),
        ({"rewards": [{"verifier": "fake", "objective": {"x": 1.0}}]}, "got 'x'"),
        (
            {"rewards": [{"verifier": "fake", "options": {"n": 1}}]},
            "verifier 'fake' has no argument 'n'",
        ),
        ({"rewards": {"verifier": "fake"}}, "rewards must be a list of tables"),
        ({"rewards": ["fake"]}, "rewards must be a list of tables"),
        ({"rewards": [{"verifier": "fake", "weight": float("nan")}]}, "weight must be a finite"),
        ({"rewards": [{"verifier": "fake", "weight": "1"}]}, "weight must be a finite number"),
        ({"rewards": [{"verifier": "fake", "processes": -1}]}, "processes a whole number from 0"),
        ({"rewards": [{"verifier": "fake", "options": ["n"]}]}, "options a table"),
        ({"maps": {"artifact": 5.0}}, "in all at most 1"),
        ({"maps": {"artifact": -0.5}}, "weights from 0"),
        ({"maps": {"artifact": "x"}}, "weights from 0"),
        ({"maps": ["artifact"]}, "weights from 0"),
        ({"passes_at": "high"}, "passes_at must be a reward, got 'high'"),
        ({"guidance": float("inf")}, "guidance must be finite"),
        ({"learning_rate": float("inf")}, "learning_rate must be above 0 and finite"),
        ({"max_sequence_length": 0}, "max_sequence_length must be at least 1"),
        ({"lora_targets": "attn.to_q"}, "lora_targets must be a list"),
        ({"stop": {"gradient": float("nan")}}, "stop.gradient must be a number above 0, got nan"),
        ({"stop": {"judge": 1.5}}, "stop.judge must be a whole number above 0, got 1.5"),
        ({"captions": ["a cat"]}, "needs 2 captions, and there are 1"),
        ({"captions": "none.txt"}, "captions: The prompts none.txt"),
        ({"stop": {"reward": 1.0}}, "stop has the unknown name 'reward'"),
        ({"stop": {"kl": 1.0}, "loss": "nft"}, "stop.kl needs loss: policy and a kl above 0"),
        ({"stop": {"kl": 1.0}, "kl": 0.0}, "stop.kl needs loss: policy and a kl above 0"),
        ({"pass_bonus": 0.5, "passes_at": None}, "pass_bonus is for pictures that pass, so 0.5"),
        ({"pass_bonus": -1.0}, "pass_bonus must be at least 0, got -1"),
        ({"stop": {"judge": 3}}, "so it needs judges and evaluate_every"),
        ({"height": 18}, "height must be a multiple of 4 up to 32 pixels, .* got 18"),
        ({"width": 64}, "width must be a multiple of 4 up to 32 pixels, .* got 64"),
        ({"lora_rank": 2, "lora_targets": ["attn.q"]}, "has no layer attn.q"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_used_are_refused(
    changed: dict[str, Any], message: str, keys: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=f"(?i){message}"):
        flow(**keys | changed)


def test_a_mistake_in_a_config_names_its_line() -> None:
    with pytest.raises(RecipeError, match=r"override 'loss=ppo'.*loss must be"):
        run_entry("flow", "flow-shapes", ["loss=ppo"])
    with pytest.raises(RecipeError, match=r"override 'group=1'.*at least 2"):
        run_entry("flow", "flow-shapes", ["group=1"])


def test_latent_grids_that_do_not_divide_the_map_are_pooled_by_area(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    # The map has 6 x 6 cells, the latents 8 x 10 places.
    flow(**keys | {"height": 16, "width": 20, "steps": 1}, advantage="dense")
    (row,) = read_metrics(tmp_path / "run")
    assert row["gradient"] > 0


def test_a_gradient_that_is_no_number_changes_nothing(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: torch.tensor(float("nan")))
    flow(**keys, lora_rank=2)
    rows = read_metrics(tmp_path / "run")
    assert [row["skipped"] for row in rows] == [1, 1]
    assert rows[1]["distance"] == 0


def test_a_judge_may_have_any_weight_because_it_is_not_weighed() -> None:
    assert VerifierSpec.read({"verifier": "fake", "weight": 0}, "judges").weight == 0
