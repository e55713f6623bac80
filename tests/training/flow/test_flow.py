"""`tts-train flow` from its keys to weights that generators load."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_families import FAMILIES

from tts_verifier.errors import InputError, RunError
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.identity import seed_for
from tts_verifier.training.common.run_folder import read_metrics
from tts_verifier.training.entries import run_entry
from tts_verifier.training.flow import flow as entry
from tts_verifier.training.flow.captions import CaptionPool
from tts_verifier.training.flow.evaluation import broken_rule
from tts_verifier.training.flow.flow import flow
from tts_verifier.training.flow.model import FlowModel
from tts_verifier.training.flow.sampling import Sampler, drawing_steps
from tts_verifier.types import Draw, Job, Prompt

LORA = "pytorch_lora_weights.safetensors"


def numbers(folder: Path) -> list[dict[str, float]]:
    """The metrics without what depends on the clock."""
    rows = read_metrics(folder)
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def transformer_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint/transformer/diffusion_pytorch_model.safetensors")


def moved(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return any(not torch.equal(one[name], other[name]) for name in one)


LOSSES = ("policy", "awm", "nft")
QUICK = [("policy", "scalar"), ("policy", "penalty"), ("awm", "dense"), ("nft", "mask")]
EVERY = [
    pytest.param(loss, kind, marks=[] if (loss, kind) in QUICK else pytest.mark.slow)
    for loss in LOSSES
    for kind in ("scalar", "mask", "dense", "penalty")
]


@pytest.mark.parametrize(("loss", "advantage"), EVERY)
def test_every_loss_trains_with_all_advantages(
    loss: str, advantage: str, keys: dict[str, Any], generator: Path, tmp_path: Path
) -> None:
    flow(**keys, loss=loss, advantage=advantage)
    rows = numbers(tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 1]
    for row in rows:
        assert row["gradient"] > 0
        assert row["unscored_share"] == row["skipped"] == 0
        assert 0 < row["reward"] < 1
    # The pictures of the first step are drawn with the weights that are trained.
    assert rows[0]["distance"] == 0
    weights = load_file(generator / "transformer/diffusion_pytorch_model.safetensors")
    assert moved(weights, transformer_of(tmp_path / "run"))


@pytest.mark.parametrize(
    "changed",
    [
        {"guidance": 3.0, "updates": 2, "draw_ahead": False},
        {"sampler": "cps", "window": 1, "trained_steps": 1, "ratio": "place"},
        pytest.param({"guidance": 3.0, "update_guidance": 1.0}, marks=pytest.mark.slow),
        pytest.param({"block": 2, "recompute": True, "kl": 0.0}, marks=pytest.mark.slow),
        {"loss": "nft", "base_pull": 0.1, "most_advantage": 2.5},
    ],
    ids=str,
)
def test_the_other_keys_work(changed: dict[str, Any], keys: dict[str, Any], tmp_path: Path) -> None:
    flow(**keys | changed)
    rows = numbers(tmp_path / "run")
    assert len(rows) == 2
    assert all(row["gradient"] > 0 for row in rows)
    if changed.get("loss", "policy") == "policy" and "updates" not in changed:
        assert rows[0]["distance"] == 0


def test_a_bonus_widens_the_gap_to_pictures_that_pass(keys: dict[str, Any], tmp_path: Path) -> None:
    keys |= {"steps": 1, "prompts": 4}
    flow(**keys | {"output": str(tmp_path / "first")})
    # Some pictures are above the mean and some below it, on every machine.
    keys["passes_at"] = numbers(tmp_path / "first")[0]["reward"]
    flow(**keys)
    flow(**keys | {"output": str(tmp_path / "bonus")}, pass_bonus=5.0)
    plain, bonus = numbers(tmp_path / "run")[0], numbers(tmp_path / "bonus")[0]
    assert 0 < plain["passed_share"] < 1
    for name in ("reward", "passed_share"):
        assert bonus[name] == plain[name]
    assert bonus["gradient"] != plain["gradient"]


@pytest.mark.parametrize(
    "changed",
    [{}, pytest.param({"loss": "awm", "draw_ahead": False}, marks=pytest.mark.slow)],
    ids=str,
)
def test_a_run_that_goes_on_equals_one_without_a_break(
    changed: dict[str, Any], keys: dict[str, Any], tmp_path: Path
) -> None:
    keys |= {"steps": 3, "average": 0.5, "easy_weight": 0.3, "passes_at": 0.4, **changed}
    flow(**keys, save_state=False)
    parts = keys | {"output": str(tmp_path / "parts")}
    # The first call ends after one step, since its time is up at once.
    flow(**parts, minutes=1e-9)
    assert len(read_metrics(tmp_path / "parts")) == 1
    flow(**parts)
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "run")
    assert not moved(transformer_of(tmp_path / "parts"), transformer_of(tmp_path / "run"))


def test_after_a_signal_all_is_kept_and_the_same_command_goes_on(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys |= {"steps": 3}
    flow(**keys, save_state=False)
    parts = keys | {"output": str(tmp_path / "parts")}
    real = entry.flow_step

    def interrupted(training: Any, ahead: Any, step: int, *rest: Any, **more: Any) -> Any:
        if step == 1:
            signal.raise_signal(signal.SIGTERM)
        return real(training, ahead, step, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(entry, "flow_step", interrupted)
        with pytest.raises(SystemExit, match="143"):
            flow(**parts)
    assert [p.name for p in (tmp_path / "parts" / "state").iterdir()] == ["00000002"]
    assert transformer_of(tmp_path / "parts")
    flow(**parts)
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "run")


def test_a_run_does_not_go_on_with_other_captions(keys: dict[str, Any], tmp_path: Path) -> None:
    keys |= {"captions": str(tmp_path / "captions.txt"), "lora_rank": 2}
    (tmp_path / "captions.txt").write_text("a cat\na dog\na hat\n")
    flow(**keys, minutes=1e-9)
    (tmp_path / "captions.txt").write_text("a cat\na dog\n")
    with pytest.raises(InputError, match="captions must be those that the run was begun with"):
        flow(**keys)
    (tmp_path / "captions.txt").write_text("a cat\na dog\na hat\n")
    flow(**keys)


def test_a_key_that_the_loss_does_not_read_keeps_no_run_from_going_on(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    keys |= {"loss": "nft", "lora_rank": 2}
    flow(**keys, minutes=1e-9)
    # As runs were noted when `window` was not refused with this loss.
    file = tmp_path / "run/run.json"
    noted = json.loads(file.read_text())
    file.write_text(json.dumps(noted | {"window": 2, "kl": 0.04}))
    flow(**keys, kl=0.1)
    assert [row["step"] for row in numbers(tmp_path / "run")] == [0, 1]
    with pytest.raises(RunError, match="begun with other settings: times is 2 there, 3 here"):
        flow(**keys | {"times": 3})


def test_a_folder_that_cannot_be_used_is_told_before_anything_is_loaded(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    flow(**keys, lora_rank=2)
    absent = keys | {"init": "absent"}
    with pytest.raises(RunError, match=r"begun with other settings: init is .*, 'absent' here"):
        flow(**absent, lora_rank=2)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/run\.json cannot be used"):
        flow(**absent | {"output": str(tmp_path / "file")})


def test_adapters_are_written_for_generators(
    keys: dict[str, Any], generator: Path, tmp_path: Path
) -> None:
    flow(**keys, lora_rank=2)
    assert [p.name for p in (tmp_path / "run/checkpoint").iterdir()] == [LORA]
    jobs = [Job(Prompt("0000", "a cat"), Draw(seed=1))]
    pictures = []
    for lora in (None, tmp_path / "run/checkpoint" / LORA):
        own = DiffusersGenerator(
            str(generator), steps=2, batch_size=1, lora=lora, call={"max_sequence_length": 16}
        )
        assert own.settings.get("lora") == (None if lora is None else str(lora))
        pictures.append(np.asarray(own.generate(jobs)[0].image))
    assert not np.array_equal(pictures[0], pictures[1])


def test_the_bundled_adapters_change_the_bundled_generator() -> None:
    jobs = [Job(Prompt("0000", "a red circle"), Draw(seed=1))]
    pictures = [
        np.asarray(DiffusersGenerator("shapes", steps=1, lora=lora).generate(jobs)[0].image)
        for lora in (None, "shapes")
    ]
    assert not np.array_equal(pictures[0], pictures[1])


@pytest.mark.parametrize(
    "changed",
    [{"advantage": "dense"}, pytest.param({"loss": "nft"}, marks=pytest.mark.slow)],
    ids=str,
)
def test_flux_is_trained_too(changed: dict[str, Any], keys: dict[str, Any], tmp_path: Path) -> None:
    FAMILIES["flux"](tmp_path / "files").pipe.save_pretrained(tmp_path / "flux")
    keys |= {"init": str(tmp_path / "flux"), "height": 32, "width": 24, "lora_rank": 2}
    flow(**keys, **changed)
    rows = numbers(tmp_path / "run")
    assert all(row["gradient"] > 0 for row in rows)
    assert rows[0]["distance"] == 0
    call = {"steps": 2, "height": 32, "width": 24, "call": {"max_sequence_length": 16}}
    tuned = DiffusersGenerator(str(tmp_path / "flux"), lora=tmp_path / "run/checkpoint", **call)
    assert tuned.generate([Job(Prompt("0000", "a cat"), Draw(seed=1))])[0].image is not None


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_euler_steps_are_those_of_the_pipeline(family: str, tmp_path: Path) -> None:
    made = FAMILIES[family](tmp_path / "files")
    made.pipe.save_pretrained(tmp_path / "pipe")
    size = made.call.get("height")
    model = FlowModel(
        tmp_path / "pipe", torch.device("cpu"), size=(size, size), max_sequence_length=16
    )
    guidance = 3.0 if family == "sd3" else 1.0
    sampler = Sampler(model, model.transformer, steps=3, guidance=guidance, block=1)
    drawn = sampler.draw(["a cat"], 1, seed=5)
    noise = torch.randn(
        (1, model.channels, *model.grid),
        generator=torch.Generator().manual_seed(seed_for(5, "", 0, "block")),
    )
    if family == "flux":
        (h, w), c = model.grid, model.channels
        noise = noise.view(1, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
        noise = noise.reshape(1, h * w // 4, 4 * c)
    call = made.call | {"num_inference_steps": 3, "max_sequence_length": 16}
    call["guidance_scale"] = 3.0 if family == "sd3" else 3.5
    images = model.pipe("a cat", latents=noise, output_type="np", **call).images
    difference = np.abs(images * 255 - drawn.images)
    assert difference.max() <= 1


def test_the_reward_is_the_weighted_sum_of_verifiers_and_judges_only_watch(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    red = {"verifier": "fake", "objective": {"semantic_alignment": 1.0}, "weight": 0.25}
    judges = [{"verifier": "fake", "objective": {"plausibility": 1.0}}, red]
    keys |= {"rewards": [*keys["rewards"], red], "held_out": ["a bus", "a tie"]}
    flow(**keys, judges=judges, evaluate_every=1)
    rows = numbers(tmp_path / "run")
    for row in rows:
        assert row["reward"] == pytest.approx(row["reward_fake"] + 0.25 * row["reward_fake_2"])
        assert 0 < row["held_fake"] < 1
        assert 0 < row["held_fake_2"] < 1
    flow(**keys | {"output": str(tmp_path / "alone")})
    alone = numbers(tmp_path / "alone")
    assert [r["reward"] for r in alone] == [r["reward"] for r in rows]


@pytest.mark.slow
def test_verifiers_may_work_in_processes_and_give_the_maps_of_others(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    mapper = {"verifier": "fake", "processes": 1}
    flow(**keys | {"steps": 1}, advantage="dense", map_verifier=mapper)
    here = keys | {"steps": 1, "output": str(tmp_path / "here")}
    flow(**here, advantage="dense")
    assert numbers(tmp_path / "here") == numbers(tmp_path / "run")


def test_captions_that_all_pass_are_drawn_less_often() -> None:
    pool = CaptionPool([str(i) for i in range(100)], 10, seed=0, easy_weight=0.5)
    for _ in range(9):
        pool.note(range(50), [True] * 50)
    drawn = [number for step in range(100) for number in pool.choose(step)]
    assert 0.02 < np.mean(np.array(drawn) < 50) < 0.12
    other = CaptionPool([str(i) for i in range(100)], 10, seed=0, easy_weight=0.5)
    other.load_state_dict(pool.state_dict())
    assert other.chosen == pool.chosen
    assert other.choose(7) == pool.choose(7)
    pool.note([3], [False])
    assert "passes 3" not in pool.state_dict()


def test_all_steps_but_the_last_draw_or_those_of_a_window() -> None:
    rng = np.random.default_rng(0)
    assert drawing_steps(4, 0.5, None, rng).tolist() == [0.5, 0.5, 0.5, 0.0]
    windows = {tuple(drawing_steps(4, 1.0, 2, rng).tolist()) for _ in range(20)}
    assert windows == {(1.0, 1.0, 0.0, 0.0), (0.0, 1.0, 1.0, 0.0)}


def row(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "gradient": 1.0, **values}


def test_a_run_stops_when_the_gradient_leaves_its_range() -> None:
    rows = [row(i) for i in range(10)] + [row(10 + i, gradient=6.0) for i in range(3)]
    assert broken_rule({"gradient": 5}, rows[:-1], None) is None
    assert "stop.gradient is 5, and at step 12" in str(broken_rule({"gradient": 5}, rows, None))
    assert broken_rule({"gradient": 7}, rows, None) is None


def test_a_run_stops_when_the_reward_rises_and_the_judge_does_not() -> None:
    rows = [row(i, held_reward=0.5 + i / 10, held_judge=0.5) for i in range(4)]
    assert broken_rule({"judge": 3}, rows[:3], "judge") is None
    assert "had risen by 0.300 in 3 evaluations" in str(broken_rule({"judge": 3}, rows, "judge"))
    rows[3]["held_judge"] = 0.6
    assert broken_rule({"judge": 3}, rows, "judge") is None


def test_a_reward_that_goes_up_and_down_does_not_stop_a_run() -> None:
    rewards = (0.9, 0.91, 0.905, 0.912)
    rows = [row(i, held_reward=reward, held_judge=0.6) for i, reward in enumerate(rewards)]
    assert broken_rule({"judge": 3}, rows, "judge") is None


@pytest.mark.parametrize("name", ["held_reward", "held_judge"])
@pytest.mark.parametrize("unknown", [[0], [2], [0, 1, 2, 3]])
def test_an_evaluation_that_knows_nothing_does_not_stop_a_run(
    name: str, unknown: list[int]
) -> None:
    rows = [row(i, held_reward=0.5 + i / 10, held_judge=0.5) for i in range(4)]
    for i in unknown:
        rows[i][name] = float("nan")
    assert broken_rule({"judge": 3}, rows, "judge") is None


def test_a_stopped_run_is_kept(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = RunError("stop.kl is 0, and so on")
    rule: Callable[..., Any] = lambda stop, rows, judge: said if len(rows) == 2 else None  # noqa: E731
    monkeypatch.setattr(entry, "broken_rule", rule)
    with pytest.raises(RunError, match=r"stop\.kl is 0"):
        flow(**keys | {"steps": 5})
    assert len(read_metrics(tmp_path / "run")) == 2
    assert (tmp_path / "run/state/00000002").is_dir()
    assert (tmp_path / "run/checkpoint/model_index.json").is_file()


def test_a_full_disk_is_said_when_weights_are_written(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(FlowModel, "write", full)
        with pytest.raises(RunError, match=r"must take the trained weights, and could.*No space"):
            flow(**keys, lora_rank=2)
    (tmp_path / "run/checkpoint").write_text("a file in the folder's place")
    with pytest.raises(RunError, match="must take the trained weights, and could not: FileExists"):
        flow(**keys, lora_rank=2)
    (tmp_path / "run/checkpoint").unlink()
    flow(**keys, lora_rank=2)
    assert (tmp_path / "run/checkpoint/pytorch_lora_weights.safetensors").is_file()


@pytest.mark.slow
def test_the_packaged_config_trains_the_bundled_generator(tmp_path: Path) -> None:
    quick = ["steps=1", "prompts=2", "group=2", "steps_drawn=2", "updates=1", "times=1"]
    own = ["rewards=[{verifier: fake}]", "judges=[]", "stop={}", "evaluate_captions=1"]
    run_entry("flow", "flow-shapes", [*quick, *own, f"output={tmp_path / 'run'}"])
    assert numbers(tmp_path / "run")[0]["gradient"] > 0
