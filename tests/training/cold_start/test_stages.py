from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker
from cases import mostly_slow

from tts_verifier import Verifier
from tts_verifier.analysis import write_report
from tts_verifier.analysis.report.training_run.stored import read_stored
from tts_verifier.errors import InputError, RecipeError, RunError, RunWarning
from tts_verifier.training.cold_start import stages
from tts_verifier.training.cold_start.batches import RowBlock
from tts_verifier.training.cold_start.clock import Clock
from tts_verifier.training.cold_start.network import ColdStartNetwork, merged_state
from tts_verifier.training.cold_start.settings import RunKeys, RunSettings
from tts_verifier.training.cold_start.sources import (
    MiniatureSource,
    RatedSource,
    read_reasons,
)
from tts_verifier.training.cold_start.stages import cold_start_1, cold_start_2, read_for_training
from tts_verifier.training.common.interruption import Interruption
from tts_verifier.training.common.run_folder import read_metrics
from tts_verifier.training.entries import run_entry
from tts_verifier.training.verifier.sft_loss import IGNORED, loss
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_model

FAST: dict[str, Any] = {
    "steps": 2,
    "batch": 2,
    "block": 1,
    "learning_rate": 1e-3,
    "examples": 0,
}


def losses_of(folder: Path) -> list[float]:
    return [row["total"] for row in read_metrics(folder)]


def rated_source(doctor: Path, ratings: Path, **changes: Any) -> RatedSource:
    reasons = read_reasons(ratings, "train", None)
    keys = {"rows": 2, "blocks": 2, "map_rows": 2, "answer_only_share": 0.5, "seed": 0} | changes
    return RatedSource(read_for_training(doctor), ratings, "train", reasons, **keys)


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, error: type[BaseException]) -> None:
    """Kills a run before the step after so many."""
    real, taken = stages.take_step, []

    def take(*arguments: Any) -> dict[str, float]:
        if len(taken) == steps:
            raise error
        taken.append(1)
        return real(*arguments)

    monkeypatch.setattr(stages, "take_step", take)


def test_stage_1_learns_answers_and_stage_2_goes_on_from_its_weights(
    doctor: Path, ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    cold_start_1(init=str(doctor), data=str(ratings), output=str(one), **FAST)
    assert [row["step"] for row in read_metrics(one)] == [0, 1]
    assert "rows/s" in capsys.readouterr().out
    heads = [
        load_model(f).state_dict()["heatmap.mask_tokens.weight"]
        for f in (doctor, one / "checkpoint")
    ]
    assert torch.equal(*heads)
    cold_start_2(init=str(one / "checkpoint"), data=str(ratings), output=str(two), **FAST)
    row = read_metrics(two)[0]
    assert row["total"] == pytest.approx(row["text"] + row["misalignment"] + row["artifact"])
    assert {"gradient", "learning_rate", "tokens", "rows", "rows_per_second"} <= set(row)
    verifier = Verifier.from_pretrained(str(two / "checkpoint"), answer_template=True)
    (verdict,) = verifier.verify([np.zeros((64, 64, 3), np.uint8)], ["a red ring"], detail="score")
    assert "overall" in verdict.scores


def test_the_report_of_a_run_shows_its_examples(
    doctor: Path, ratings: Path, tmp_path: Path
) -> None:
    keys = FAST | {"init": str(doctor), "examples": 2}
    data = {"one": str(ratings), "two": "miniature"}
    cold_start_1(data=data["one"], output=str(tmp_path / "one"), **keys)
    cold_start_2(data=data["two"], output=str(tmp_path / "two"), **keys)
    for name, words in (("one", "train, seen in training"), ("two", "held-out captions")):
        write_report([tmp_path / name], tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text("utf-8")
        assert f"after 2 steps of pictures from: {words}" in text
        assert f"<dt>entry<dd>cold-start-{1 + (name == 'two')}" in text
        assert text.count("<article") == 2
        assert text.count('role="img"') >= 4


class Tracker(GeneralTracker):
    """Keeps what a tracker is told."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__(_blank=True)
        self.settings: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int, **_: Any) -> None:
        self.logged.append((step, values))


def test_trackers_get_the_settings_and_every_metric(
    doctor: Path, ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Tracker()
    monkeypatch.setattr(RunSettings, "tracker_names", lambda run: [kept])
    cold_start_1(init=str(doctor), data=str(ratings), output=str(tmp_path), **FAST)
    assert (kept.settings["seed"], kept.settings["map_weight"]) == (0, 0.0)
    assert all(isinstance(v, (int, float, str)) for v in kept.settings.values())
    rows = read_metrics(tmp_path)
    assert kept.logged == [
        (i, {k: v for k, v in r.items() if k != "step"}) for i, r in enumerate(rows)
    ]


def test_progress_says_the_rate_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0])
    monkeypatch.setattr("tts_verifier.training.cold_start.clock.time.monotonic", lambda: next(now))
    row = {"total": 0.5, "tokens": 800.0, "rows": 4.0}
    for minutes, left in ((None, 30), (0.25, 5)):
        now = iter([100.0, *[110.0] * 9])
        clock = Clock(RunSettings("a", "b", steps=40, batch=4, minutes=minutes), 0, Interruption())
        clock.show(9, row, 1, last=False)
        assert capsys.readouterr().out == (
            f"step 10 of 40, 4.0 rows/s, 800 tokens/s, {left} s left: total 0.5000, "
            "1 steps skipped\n"
        )


def test_the_tower_is_frozen_unless_it_is_asked_for(
    doctor: Path, ratings: Path, tmp_path: Path
) -> None:
    for name, tower in (("frozen", False), ("trained", True)):
        cold_start_1(
            init=str(doctor),
            data=str(ratings),
            output=str(tmp_path / name),
            train_tower=tower,
            **FAST | {"steps": 1},
        )
    before = load_model(doctor).state_dict()
    for name, tower in (("frozen", False), ("trained", True)):
        after = load_model(tmp_path / name / "checkpoint").state_dict()
        assert (
            torch.equal(
                before["visual.blocks.0.attn.qkv.weight"], after["visual.blocks.0.attn.qkv.weight"]
            )
            != tower
        )
        assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])


@pytest.mark.parametrize("data", mostly_slow(["miniature", "ratings"], quick=["ratings"]))
def test_a_killed_run_goes_on_with_equal_numbers(
    data: str, doctor: Path, ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = FAST | {
        "init": str(doctor),
        "data": data if data == "miniature" else str(ratings),
        "answer_weight": 1.0,
        "steps": 3,
    }
    cold_start_2(output=str(tmp_path / "whole"), **keys)
    with monkeypatch.context() as patched:
        stop_after(patched, 2, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            cold_start_2(output=str(tmp_path / "killed"), save_minutes=1e-9, **keys)
    # A kill while a state is written leaves a draft, and metrics may be ahead of the state.
    (tmp_path / "killed" / "state" / "draft").mkdir()
    cold_start_2(output=str(tmp_path / "killed"), **keys)
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "whole")
    states = [load_model(tmp_path / n / "checkpoint").state_dict() for n in ("whole", "killed")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert [p.name for p in (tmp_path / "killed" / "state").iterdir()] == ["00000003"]


def test_a_run_stops_when_its_time_is_up_and_the_same_command_goes_on(
    doctor: Path, ratings: Path, tmp_path: Path
) -> None:
    keys = FAST | {"init": str(doctor), "data": str(ratings), "output": str(tmp_path / "run")}
    cold_start_1(minutes=1e-9, **keys)
    assert len(read_metrics(tmp_path / "run")) == 1
    assert (tmp_path / "run" / "checkpoint" / "config.json").exists()
    cold_start_1(**keys)
    assert len(read_metrics(tmp_path / "run")) == 2
    cold_start_1(**keys)
    assert len(read_metrics(tmp_path / "run")) == 2
    with pytest.raises(RunError, match=r"other settings: seed is 0 there, 1 here"):
        cold_start_1(seed=1, **keys)
    with pytest.raises(RunError, match="must be new, empty or begun by this command"):
        cold_start_1(**keys | {"output": str(tmp_path)})
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json cannot be used"):
        cold_start_1(**keys)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_after_a_signal_all_is_kept_and_the_same_command_goes_on(
    number: int,
    error: type[BaseException],
    doctor: Path,
    ratings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = FAST | {"init": str(doctor), "data": str(ratings), "steps": 4}
    cold_start_1(output=str(tmp_path / "whole"), **keys)
    keys |= {"output": str(tmp_path / "run")}
    real = stages.take_step

    def interrupted(*arguments: Any) -> dict[str, float]:
        if arguments[4] == 1:
            signal.raise_signal(number)
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(stages, "take_step", interrupted)
        with pytest.raises(error):
            cold_start_1(**keys)
    # The steps that ran, and no more.
    assert [p.name for p in (tmp_path / "run" / "state").iterdir()] == ["00000003"]
    assert (tmp_path / "run" / "checkpoint" / "config.json").exists()
    cold_start_1(**keys)
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")


def test_without_a_state_only_metrics_and_weights_are_kept(
    doctor: Path, ratings: Path, tmp_path: Path
) -> None:
    keys = FAST | {"init": str(doctor), "data": str(ratings), "output": str(tmp_path / "run")}
    cold_start_1(save_state=False, **keys)
    assert not list((tmp_path / "run").glob("state/*"))
    assert len(read_metrics(tmp_path / "run")) == 2


def test_steps_whose_loss_is_not_a_number_are_skipped_and_ten_in_a_row_stop_the_run(
    doctor: Path, ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ColdStartNetwork.forward
    bad = {1}
    steps = iter(range(100))

    def forward(self: ColdStartNetwork, block: RowBlock, shares: torch.Tensor) -> Any:
        losses = real(self, block, shares)
        if next(steps) in bad:
            losses["total"] = losses["total"] * torch.nan
        return losses

    monkeypatch.setattr(ColdStartNetwork, "forward", forward)
    keys = FAST | {"init": str(doctor), "data": str(ratings), "block": 2}
    cold_start_1(output=str(tmp_path / "one"), **keys | {"steps": 4})
    assert [row["skipped"] for row in read_metrics(tmp_path / "one")] == [0, 1, 0, 0]
    after = load_model(tmp_path / "one" / "checkpoint").state_dict()
    assert all(t.isfinite().all() for t in after.values())
    bad.update(range(100))
    with pytest.raises(RunError, match=r"were not in 10 steps in a row, the last of them step 9"):
        cold_start_1(output=str(tmp_path / "ten"), **keys | {"steps": 20})
    assert len(read_metrics(tmp_path / "ten")) == 9


def test_adapters_train_the_language_model_and_are_merged(
    doctor: Path, ratings: Path, tmp_path: Path
) -> None:
    cold_start_2(
        init=str(doctor),
        data=str(ratings),
        output=str(tmp_path / "run"),
        lora_rank=2,
        recompute=True,
        **FAST | {"learning_rate": 1e-2},
    )
    before, after = (load_model(f).state_dict() for f in (doctor, tmp_path / "run" / "checkpoint"))
    config = read_for_training(doctor).model.config
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.layers.0.self_attn.q_proj.weight" in changed
    assert "heatmap.mask_tokens.weight" in changed
    assert "model.norm.weight" not in changed
    rows = (before["model.embed_tokens.weight"] != after["model.embed_tokens.weight"]).any(1)
    assert set(rows.nonzero().flatten().tolist()) <= {
        config.misalignment_token_id,
        config.artifact_token_id,
    }


def test_adapters_need_peft(doctor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"lora_rank needs the package peft.*pip install"):
        ColdStartNetwork(read_for_training(doctor), lora_rank=2)


def test_merged_adapters_answer_as_the_adapted_model_does(doctor: Path) -> None:
    checkpoint = read_for_training(doctor)
    ColdStartNetwork(checkpoint, lora_rank=2)
    model = checkpoint.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    merged = read_for_training(doctor).model
    merged.load_state_dict(merged_state(model), strict=False)
    ids = torch.randint(0, 200, (1, 6))
    positions = torch.arange(6).expand(3, 1, -1)
    for m in (model, merged):
        m.eval()
    hidden = [m.language(m.model.embed_tokens(ids), positions) for m in (model, merged)]
    torch.testing.assert_close(*hidden, atol=1e-5, rtol=1e-4)


def test_the_loss_of_a_block_is_that_of_whole_rows(doctor: Path, ratings: Path) -> None:
    checkpoint = read_for_training(doctor)
    source = rated_source(doctor, ratings)
    block = source.block(0, 0)
    network = ColdStartNetwork(checkpoint)
    counts = block.counts
    assert counts[2:].tolist() == [2, 2]
    ours = network(block, torch.ones(4))
    labels = torch.full_like(block.ids, IGNORED).scatter(1, block.reply, block.labels)
    outputs = checkpoint.model(block.ids, network.preprocess(block.pixels), [(1, 4, 4)] * 2)
    theirs = loss(checkpoint.model, outputs, labels, block.maps / 255, grid=(2, 2))
    torch.testing.assert_close(ours["total"], theirs.total)


def test_two_processes_make_the_rows_that_one_makes(doctor: Path, ratings: Path) -> None:
    run = RunSettings(str(doctor), "x", 4, 8, block=2)
    assert run.blocks_for(1) == run.blocks_for(2) == run.blocks_for(4) == 4
    with pytest.raises(InputError, match="must be shared equally: batch 8 by 3 processes"):
        run.blocks_for(3)
    source = rated_source(doctor, ratings)
    again = rated_source(doctor, ratings, in_memory=True)
    for step, number in ((0, 0), (3, 1), (1, 0)):
        pairs = zip(source.block(step, number), again.block(step, number), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    endless = MiniatureSource(
        read_for_training(doctor), rows=2, map_rows=1, answer_only_share=0.5, seed=0
    )
    first = endless.block(5, 1)
    endless.block(6, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, endless.block(5, 1), strict=True))


def test_stage_1_learns_from_endless_pictures_too(doctor: Path, tmp_path: Path) -> None:
    cold_start_1(init=str(doctor), data="miniature", output=str(tmp_path), workers=1, **FAST)
    assert all(set(row) >= {"total", "text"} for row in read_metrics(tmp_path))
    assert "artifact" not in read_metrics(tmp_path)[0]


def test_an_epoch_shows_every_picture_once_in_an_order_of_its_own(
    doctor: Path, ratings: Path
) -> None:
    source = rated_source(doctor, ratings, blocks=1, rows=6)
    pictures = [source.block(step, 0).pixels.flatten(1).sum(1).tolist() for step in (0, 1)]
    assert sorted(pictures[0]) == sorted(pictures[1])
    assert pictures[0] != pictures[1]


def test_reasons_come_from_a_file_or_from_the_miniatures_truth(
    doctor: Path, ratings: Path, tmp_path: Path
) -> None:
    known = read_reasons(ratings, "train", None)
    assert len(known) == 6
    assert all(text.startswith("<think>\nObjects:") for text in known.values())
    uid = next(iter(known))
    file = tmp_path / "reasons.jsonl"
    file.write_text(json.dumps({"filename": f"train/{uid}.png", "reasons": "<think>Red.</think>"}))
    assert read_reasons(ratings, "train", file) == {uid: "<think>\nRed."}
    with pytest.warns(RunWarning, match="5 of 6 pictures have no reasons"):
        RatedSource(
            read_for_training(doctor),
            ratings,
            "train",
            {uid: "<think>\nRed."},
            rows=2,
            blocks=1,
            map_rows=2,
            answer_only_share=0.0,
            seed=0,
        )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"filename": "a.png"}', r"reasons\.jsonl:1: a row needs a 'filename' and its 'reasons'"),
        ("[1]", r"reasons\.jsonl:1: a row needs"),
        ('{"filename": "a", "reasons": "x</think><answer>"}', "some text without an answer"),
        ('{"filename": "a", "reasons": " "}', "some text without an answer"),
    ],
)
def test_reasons_that_cannot_be_used_are_named_with_their_line(
    line: str, message: str, ratings: Path, tmp_path: Path
) -> None:
    (tmp_path / "reasons.jsonl").write_text(line)
    with pytest.raises(InputError, match=message):
        read_reasons(ratings, "train", tmp_path / "reasons.jsonl")


def test_ratings_without_reasons_are_enough_for_stage_1_only(
    doctor: Path, ratings: Path, tmp_path: Path
) -> None:
    real = tmp_path / "real"
    shutil.copytree(ratings, real)
    (real / "miniature.json").unlink()
    cold_start_1(init=str(doctor), data=str(real), output=str(tmp_path / "a"), **FAST)
    with pytest.raises(InputError, match=r"Stage 2 learns reasons, and .* has none"):
        cold_start_2(init=str(doctor), data=str(real), output=str(tmp_path / "b"), **FAST)
    with pytest.raises(InputError, match=r"cannot be read"):
        read_reasons(real, "train", tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=0", "steps must be at least 1, got 0"),
        ("batch=0", "batch must be at least 1"),
        ("block=3", "must be shared equally"),
        ("learning_rate=0", "learning_rate must be above 0"),
        ("minutes=0", "minutes must be above 0"),
        ("warm_up=2", r"warm_up must be in \[0, 1\]"),
        ("batch=1000000", "batch must be at most 65536, the largest step, got 1000000"),
        ("workers=1000000", "workers must be at most .* 32 for each core of this machine"),
        ("lora_rank=1000000", "lora_rank must be at most [0-9]+, the rank of the largest layer"),
        ("lora_rank=-1", "lora_rank must be finite and at least 0"),
        ("workers=-1", "workers must be finite and at least 0"),
        ("examples=-1", "examples must be finite and at least 0, got -1"),
        ("answer_only_share=2", r"answer_only_share must be in \[0, 1\], got 2"),
        ("trackers=[excel]", "trackers must be of tensorboard, wandb, got 'excel'"),
        ("trackers=[wandb]", "The tracker wandb is not installed"),
        ("data=absent", "data must be a folder of RichHF-18K"),
        ("samples=x", "samples to data: miniature; got samples with data"),
        ("data=miniature reasons=x", "got reasons with data 'miniature'"),
        ("precision=fp8", "precision must be"),
        ("lora_rank=2 train_tower=true", "adapts the language model alone"),
        ("colour=red", "unknown key 'colour'"),
    ],
)
def test_a_mistake_in_a_config_is_named(
    override: str,
    message: str,
    doctor: Path,
    ratings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"init: {doctor}\ndata: {ratings}\noutput: {tmp_path / 'out'}\nsteps: 1\nbatch: 2\n"
    )
    with pytest.raises(RecipeError, match=message):
        run_entry("cold-start-2", config, override.split())


def test_a_tokenizer_without_both_tokens_names_the_entry_that_adds_them(
    doctor: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "doctor"
    shutil.copytree(doctor, folder)
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] != "<|artifact|>"]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"has none for artifact_token_id .* init-from-qwen"):
        read_for_training(folder)


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    run = RunSettings("a", "b", steps=100, batch=1, learning_rate=1.0, warm_up=0.1)
    rates = [run.learning_rate_at(step) for step in range(101)]
    assert max(rates) == rates[10] == 1.0
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)


def test_every_setting_is_a_key() -> None:
    with_defaults = {f.name for f in fields(RunSettings) if f.default is not MISSING}
    assert with_defaults == set(RunKeys.__annotations__)


@pytest.mark.slow
def test_two_processes_take_the_steps_that_one_takes(doctor: Path, tmp_path: Path) -> None:
    """`accelerate launch --cpu` would start one process, whatever number it is told."""
    launch = ["torch.distributed.run", "--nproc_per_node", "2", "-m"]
    for name, command in (("one", []), ("two", launch)):
        keys = {"init": doctor, "output": tmp_path / name, "steps": 3, "batch": 8, "block": 2}
        keys |= {"map_rows": 1, "workers": 0, "learning_rate": 1e-3, "examples": 1}
        entry = ["tts_verifier.training", "cold-start-2", "both-modes"]
        overrides = [f"{key}={value}" for key, value in keys.items()]
        subprocess.run([sys.executable, "-m", *command, *entry, *overrides], check=True)
        # Whoever comes last still finds the others.
        assert (tmp_path / name / "checkpoint" / "config.json").exists()
        assert (tmp_path / name / "examples.parquet").exists()
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for name in ("total", "text", "artifact", "gradient", "tokens", "rows"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-5)
    (about,) = read_stored(tmp_path / "two").places
    assert (about["processes"], about["entry"]) == ("2", "cold-start-2")
