from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tts_verifier.training.miniature.verifier import train
from tts_verifier.training.miniature.verifier.checkpoint import write_checkpoint
from tts_verifier.training.miniature.verifier.checks import check_replies, held_out_images
from tts_verifier.training.miniature.verifier.config import VERIFIER_PRESETS
from tts_verifier.training.miniature.verifier.data import TextRows
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_checkpoint, load_model


@pytest.mark.parametrize("stage", ["perception", "cold-start"])
def test_a_stage_leaves_a_checkpoint_that_the_next_and_the_user_can_load(
    stage: train.StageName, tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = VERIFIER_PRESETS["cpu"].training
    training = replace(preset, batch=2, text_batch=2, check_images=2)
    run = train.StageRun(stage, tiny.folder, tmp_path / "out", 1e-4, 0, None)
    train.VerifierTrainer(run, training).train()
    assert "replies: objects" in capsys.readouterr().out
    write_checkpoint(load_model(run.out), run.out, tmp_path / "export", torch.float16)
    loaded = load_checkpoint(tmp_path / "export")
    assert loaded.limits.max_new_tokens == 192
    assert set(check_replies(loaded, held_out_images(2, seed=0))) >= {"plcc", "objects", "whole"}


def test_rows_are_used_again() -> None:
    new = (TextRows(torch.tensor([[i], [i]]), torch.tensor([[-i], [-i]])) for i in range(1, 4))
    batches = list(train.reuse_rows(new, 3, torch.device("cpu"), seed=0))
    assert [len(batch.ids) for batch in batches] == [6, 6, 6]
    assert all(torch.equal(batch.ids, -batch.labels) for batch in batches)
    assert set(batches[0].ids.flatten().tolist()) == {1}
    assert len(set(batches[2].ids.flatten().tolist())) > 1


def test_rows_used_once_are_passed_on() -> None:
    rows = TextRows(torch.tensor([[1]]), torch.tensor([[2]]))
    assert list(train.reuse_rows(iter([rows]), 1, torch.device("cpu"), seed=0)) == [rows]


def test_the_command_line_can_give_answers_without_reasons_a_share_and_a_loss(
    monkeypatch: pytest.MonkeyPatch, tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = VERIFIER_PRESETS["cpu"]
    small = replace(preset.training, batch=2, text_batch=0, check_images=2, print_seconds=0.0)
    monkeypatch.setattr(train, "VERIFIER_PRESETS", {"cpu": replace(preset, training=small)})
    options = ["--stage", "cold-start", "--init", str(tiny.folder), "--out", str(tmp_path / "out")]
    both = ["--answer-only-share", "0.5", "--answer-weight", "1", "--minutes", "1e-4"]
    monkeypatch.setattr("sys.argv", ["verifier", *options, *both])
    train.main()
    printed = capsys.readouterr().out
    assert "answer_probe" in printed
    assert "score_plcc" in printed


def test_the_old_names_of_stages_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["verifier", "--stage", "judge", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        train.main()
    assert "invalid choice: 'judge'" in capsys.readouterr().err
