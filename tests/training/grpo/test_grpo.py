"""`tts-train grpo` from its config to its checkpoint."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import mostly_slow
from pyarrow import parquet

from tts_verifier.analysis.report.training_run.stored import read_stored
from tts_verifier.errors import CheckpointError, InputError, RecipeError, RunError
from tts_verifier.training.common.run_folder import read_metrics
from tts_verifier.training.entries import run_entry
from tts_verifier.training.examples import EXAMPLES_FILE
from tts_verifier.training.grpo import grpo as entry
from tts_verifier.training.grpo import update as update_module
from tts_verifier.training.grpo.grpo import grpo
from tts_verifier.training.grpo.measures import Rewarded
from tts_verifier.training.grpo.policy import GroupRows, Policy
from tts_verifier.training.grpo.rewards import REWARDS
from tts_verifier.training.grpo.rollouts import Group
from tts_verifier.training.grpo.settings import PATIENCE, GrpoSettings, Limits
from tts_verifier.training.richhf.tfrecord import read_records, write_records
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_model

FAST: dict[str, Any] = {
    "steps": 2,
    "prompts": 2,
    "group": 3,
    "max_new_tokens": 6,
    "learning_rate": 1e-2,
    "warm_up": 0.0,
    "examples": 0,
}


@pytest.fixture
def keys(doctor: Path, ratings: Path) -> dict[str, Any]:
    return FAST | {"init": str(doctor), "data": str(ratings)}


def numbers(folder: Path) -> list[dict[str, float]]:
    """The metrics without what depends on the clock."""
    rows = read_metrics(folder)
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder / "checkpoint").state_dict()


@pytest.mark.usefixtures("even_tokens")
def test_a_run_trains_the_language_model_and_measures_itself(
    keys: dict[str, Any], doctor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grpo(output=str(tmp_path / "run"), **keys)
    first, second = read_metrics(tmp_path / "run")
    assert first["step"] == 0
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert second["kl"] > 0
    assert first["rollout_gap"] < 1e-3
    assert first["reward"] == pytest.approx(first["reward_even"])
    assert {"entropy", "length", "unread_share", "no_variance_share", "clip_share", "gradient"} <= (
        set(first)
    )
    parts = {"weights", "rollout", "rewards", "reference", "update"}
    assert {f"seconds_{part}" for part in parts} <= set(first)
    assert first["rows"] == 6
    assert 1 <= first["length"] <= 6
    assert "rows/s" in (out := capsys.readouterr().out)
    assert "reward " in out
    before, after = load_model(doctor).state_dict(), weights(tmp_path / "run")
    changed = {
        name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])
    }
    assert changed <= {"model", "lm_head"}
    assert "model" in changed


@pytest.mark.usefixtures("even_tokens")
@pytest.mark.filterwarnings("ignore::tts_verifier.errors.RunWarning")
def test_the_report_of_a_run_shows_its_examples(keys: dict[str, Any], tmp_path: Path) -> None:
    grpo(output=str(tmp_path / "run"), **keys | {"steps": 1, "examples": 2})
    rows = parquet.read_table(tmp_path / "run" / EXAMPLES_FILE).to_pylist()
    assert [row["split"] for row in rows] == ["train, seen in training"] * 2
    assert read_metrics(tmp_path / "run")[0]["seconds"] > 0


@pytest.mark.usefixtures("even_tokens")
def test_the_reward_rises(keys: dict[str, Any], tmp_path: Path) -> None:
    steps = keys | {"steps": 25, "prompts": 4, "group": 8, "beta": 0.0, "learning_rate": 3e-2}
    grpo(output=str(tmp_path / "run"), **steps)
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.1
    assert "kl" not in rows[0]


@pytest.mark.usefixtures("even_tokens")
@pytest.mark.parametrize("loss", mostly_slow(["dr_grpo", "dapo"], quick=["dapo"]))
def test_blocks_and_both_other_means_give_finite_losses(
    loss: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    found = []
    for block in (None, 1):
        folder = tmp_path / str(block)
        changes = {"loss": loss, "block": block, "num_iterations": 2, "steps": 1}
        grpo(output=str(folder), **keys | changes)
        found.append(numbers(folder)[0])
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)
    assert found[0]["clip_share"] > 0


@pytest.mark.usefixtures("even_tokens")
def test_a_killed_run_goes_on_with_equal_numbers(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys |= {"steps": 4, "save_minutes": 1e-9, "stop": {"min_length": 1}}
    grpo(output=str(tmp_path / "whole"), **keys)
    real = entry.policy_step

    def killed(training: Any, step: int, *rest: Any) -> dict[str, float]:
        if step == 2:
            raise KeyboardInterrupt
        return real(training, step, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(entry, "policy_step", killed)
        with pytest.raises(KeyboardInterrupt):
            grpo(output=str(tmp_path / "killed"), **keys)
    (tmp_path / "killed" / "state" / "draft").mkdir()
    grpo(output=str(tmp_path / "killed"), **keys)
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("even_tokens")
def test_a_run_stops_when_its_time_is_up_and_the_same_command_goes_on(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    grpo(output=str(folder), minutes=1e-9, **keys)
    assert len(read_metrics(folder)) == 1
    assert (folder / "checkpoint" / "config.json").is_file()
    grpo(output=str(folder), stop={"kl": 100.0}, **keys)
    assert len(read_metrics(folder)) == 2
    with pytest.raises(RunError, match=r"begun with other settings: .*group is 3 there, 4 here"):
        grpo(output=str(folder), **keys | {"group": 4})
    grpo(output=str(tmp_path / "more"), **keys | {"init": str(folder / "checkpoint")})
    assert len(read_metrics(tmp_path / "more")) == 2


@pytest.mark.usefixtures("even_tokens")
def test_after_a_signal_all_is_kept_and_the_same_command_goes_on(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys |= {"steps": 4}
    grpo(output=str(tmp_path / "whole"), **keys)
    real = entry.policy_step

    def interrupted(training: Any, step: int, *rest: Any) -> dict[str, float]:
        if step == 0:
            signal.raise_signal(signal.SIGINT)
        return real(training, step, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(entry, "policy_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            grpo(output=str(tmp_path / "run"), **keys)
    assert [p.name for p in (tmp_path / "run" / "state").iterdir()] == ["00000002"]
    assert (tmp_path / "run" / "checkpoint" / "config.json").is_file()
    grpo(output=str(tmp_path / "run"), **keys)
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


class Constant:
    """Rewards every reply alike."""

    def __init__(self, unread: bool) -> None:
        self.unread = unread

    def __call__(self, *_: Any) -> Constant:
        return self

    def reward(self, groups: Sequence[Group]) -> Rewarded:
        totals = torch.ones(len(groups), len(groups[0].replies), dtype=torch.float64)
        return Rewarded(totals, {}, totals.numel() if self.unread else 0)


def use_constant(monkeypatch: pytest.MonkeyPatch, *, unread: bool = False) -> None:
    constant = Constant(unread)
    monkeypatch.setattr(entry, "OfficialRewards", lambda *_, **__: constant.reward)


def test_groups_without_variance_are_left_out_and_counted(
    keys: dict[str, Any], doctor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_constant(monkeypatch)
    calls: list[int] = []
    real = update_module.add_gradients
    monkeypatch.setattr(
        update_module,
        "add_gradients",
        lambda *a: calls.append(1) or real(*a),  # type: ignore[func-returns-value]
    )
    grpo(output=str(tmp_path / "run"), **keys)
    assert not calls
    rows = read_metrics(tmp_path / "run")
    assert [row["no_variance_share"] for row in rows] == [1.0, 1.0]
    assert "seconds_update" not in rows[0]
    before, after = load_model(doctor).state_dict(), weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_replies_that_cannot_be_read_stop_the_first_step(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(
        RunError, match=r"none of the first step's 6 replies has all four .*cold st"
    ):
        grpo(output=str(tmp_path / "run"), **keys)


@pytest.mark.usefixtures("even_tokens")
def test_a_limit_stops_the_run_and_keeps_it(keys: dict[str, Any], tmp_path: Path) -> None:
    keys |= {"steps": 9, "stop": {"min_length": 100}}
    with pytest.raises(RunError, match=r"stop.min_length is 100, and length was below it in 3 st"):
        grpo(output=str(tmp_path / "run"), **keys)
    assert len(read_metrics(tmp_path / "run")) == PATIENCE
    assert (tmp_path / "run" / "state" / "00000003").is_dir()
    assert weights(tmp_path / "run")


@pytest.mark.parametrize(
    ("rule", "metric", "good", "bad"),
    [
        ("kl", "kl", 0.1, 2.0),
        ("unread_share", "unread_share", 0.0, 1.5),
        ("min_length", "length", 5.0, 0.5),
        ("entropy", "entropy", 2.0, 0.5),
    ],
)
def test_a_limit_counts_steps_in_a_row(rule: str, metric: str, good: float, bad: float) -> None:
    limits = Limits({rule: 1.0})
    for value in (bad, bad, good, bad):
        limits.check(0, {metric: value})
    limits.check(0, {})
    again = Limits({rule: 1.0})
    again.load_state_dict(limits.state_dict())
    again.check(7, {metric: bad})
    with pytest.raises(RunError, match=rf"stop\.{rule} is 1, and {metric} was .* step 8"):
        again.check(8, {metric: bad})


@pytest.mark.usefixtures("even_tokens")
def test_steps_without_a_finite_loss_are_skipped_and_ten_in_a_row_stop_the_run(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls, bad = Policy.forward, iter(range(1000)), {1}

    def forward(self: Policy, rows: GroupRows) -> torch.Tensor:
        found = real(self, rows)
        return found * torch.nan if next(calls) in bad else found

    monkeypatch.setattr(Policy, "forward", forward)
    keys |= {"beta": 0.0, "steps": 3}
    grpo(output=str(tmp_path / "one"), **keys)
    assert [row["skipped"] for row in read_metrics(tmp_path / "one")] == [0, 1, 0]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "one").values())
    bad.update(range(1000))
    with pytest.raises(RunError, match="were not in 10 steps in a row, the last of them step 9"):
        grpo(output=str(tmp_path / "ten"), **keys | {"steps": 20})


@pytest.mark.usefixtures("even_tokens")
def test_the_tower_and_recomputation_are_options(keys: dict[str, Any], tmp_path: Path) -> None:
    grpo(output=str(tmp_path / "plain"), **keys)
    grpo(output=str(tmp_path / "again"), recompute=True, **keys)
    for one, other in zip(numbers(tmp_path / "plain"), numbers(tmp_path / "again"), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    grpo(output=str(tmp_path / "tower"), train_tower=True, **keys)
    before, after = load_model(Path(keys["init"])).state_dict(), weights(tmp_path / "tower")
    name = "visual.blocks.0.attn.qkv.weight"
    assert not torch.equal(before[name], after[name])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("group=1", "group must be at least 2, got 1"),
        ("prompts=0", "prompts must be at least 1, got 0"),
        ("block=0", "block must be at least 1"),
        ("group=1000000", "group must be at most [0-9]+, so that a step of [0-9]+ prompts has"),
        ("prompts=1000000", "prompts must be at most 32768"),
        ("max_new_tokens=1000000", "max_new_tokens must be at most .* the checkpoint knows"),
        ("max_new_tokens=0", "max_new_tokens must be at least 1"),
        ("num_iterations=0", "num_iterations must be at least 1"),
        ("temperature=0", "temperature must be above 0, got 0"),
        ("temperature=1e-9", "temperature must be 0 or a finite number of at least"),
        ("top_p=0", "top_p must be a number above 0"),
        ("top_k=-1", "top_k must be a whole number"),
        ("beta=-1", "beta must not be negative"),
        ("epsilon=1", "epsilon must be above 0 and below 1"),
        ("loss=ppo", "loss must be"),
        ("scaling=ours", "scaling must be"),
        ("stop={klm: 1}", "stop has the unknown name 'klm'"),
        ("stop={kl: high}", "stop must be"),
        ("rewards={politeness: 1}", "rewards has the unknown name 'politeness'"),
        ("rewards={semantic_score: 0}", "rewards must weigh at least one"),
        ("data=absent", "data must be a folder of RichHF-18K or of its miniature; 'absent' does"),
        ("split=test", "has no test.tfrecord"),
        ("lora_rank=2", "unknown key 'lora_rank'"),
        ("workers=2", "unknown key 'workers'"),
        ("learning_rate=0", "learning_rate must be above 0"),
        ("steps=0", "steps must be at least 1"),
    ],
)
def test_a_mistake_in_a_config_is_named(
    override: str, message: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(json.dumps(keys | {"output": str(tmp_path / "run")}))
    with pytest.raises((RecipeError, InputError), match=message):
        run_entry("grpo", config, [override])
    assert not (tmp_path / "run").exists()


def test_prompts_are_shared_equally_by_processes() -> None:
    settings = GrpoSettings("data", prompts=6)
    assert [*settings.share(1, 3)] == [2, 3]
    with pytest.raises(InputError, match="must be shared equally: 6 by 4 processes"):
        settings.share(0, 4)
    assert settings.weights_of(["a"]) == {"a": 1.0}
    assert GrpoSettings("d", 1, rewards={"b": 2, "a": 0}).weights_of(["a", "b"]) == {"b": 2.0}
    assert len(REWARDS) == 12


def test_a_checkpoint_without_both_tokens_or_without_heads_is_refused(
    keys: dict[str, Any], doctor: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "doctor"
    shutil.copytree(doctor, folder)
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] != "<|artifact|>"]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    keys |= {"output": str(tmp_path / "run"), "init": str(folder)}
    with pytest.raises(InputError, match=r"has none for artifact_token_id .* init-from-qwen"):
        grpo(**keys)
    shutil.rmtree(folder)
    shutil.copytree(doctor, folder)
    from safetensors.torch import load_file, save_file

    for path in folder.glob("*.safetensors"):
        kept = {n: t for n, t in load_file(path).items() if not n.startswith("heatmap.")}
        save_file(kept, path)
    with pytest.raises(CheckpointError, match=r"heatmap\."):
        grpo(**keys)
    assert not (tmp_path / "run").exists()


def test_ratings_without_maps_are_refused(
    keys: dict[str, Any], ratings: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(ratings, data)
    (path,) = data.glob("train*.tfrecord")
    records = [record.replace(b"artifact_map", b"artifact_mop") for record in read_records(path)]
    path.unlink()
    write_records(path, records)
    with pytest.raises(InputError, match="record 0: A record needs the field 'artifact_map'"):
        grpo(output=str(tmp_path / "run"), **keys | {"data": str(data)})


SCRIPT = """
import sys
from conftest import EvenTokens
from tts_verifier.training.grpo import grpo as entry
from tts_verifier.training.entries import run_entry
from tts_verifier.training.examples import EXAMPLES_FILE
entry.OfficialRewards = EvenTokens
run_entry("grpo", sys.argv[1], sys.argv[2:])
"""


@pytest.mark.slow
def test_two_processes_take_the_steps_that_one_takes(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch --cpu` would start one process, whatever number it is told."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    config = tmp_path / "mine.yaml"
    config.write_text(json.dumps(keys | {"output": str(tmp_path / "any"), "steps": 3}))
    tests = Path(__file__).parents[2]
    paths = [str(Path(__file__).parent), str(tests), str(tests.parent)]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    for name, command in (("one", []), ("two", launch)):
        arguments = [str(script), str(config), f"output={tmp_path / name}"]
        subprocess.run([sys.executable, *command, *arguments], check=True)
    for one, two in zip(numbers(tmp_path / "one"), numbers(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-5)
    (about,) = read_stored(tmp_path / "two").places
    assert about["processes"] == "2"
