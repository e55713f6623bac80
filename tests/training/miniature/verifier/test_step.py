from __future__ import annotations

import torch

from tts_verifier.training.miniature.verifier.checkpoint import read_checkpoint
from tts_verifier.training.miniature.verifier.data import (
    BatchMaker,
    ColdStartRows,
    PerceptionRows,
)
from tts_verifier.training.miniature.verifier.step import VerifierStep
from tts_verifier.training.verifier.sft_loss import loss


def test_the_step_runs_the_network_as_the_model_itself_does(tiny) -> None:
    c = tiny.checkpoint
    step = VerifierStep(c.model, c.processor)
    rows = BatchMaker(tiny.writer, "cold-start", seed=3).batch(3)
    assert isinstance(rows, ColdStartRows)
    ours = step.image_losses(rows)
    outputs = c.model(rows.ids, step.preprocess(rows.pixels), [(1, 4, 4)] * 3)
    maps = step.map_resize @ (rows.maps.float() / 255) @ step.map_resize.T
    theirs = loss(c.model, outputs, rows.labels, maps, grid=(2, 2))
    torch.testing.assert_close(ours["total"], theirs.total)
    some = VerifierStep(c.model, c.processor, heatmap_rows=2).image_losses(rows)
    theirs = loss(c.model, outputs, rows.labels, maps[:2], grid=(2, 2))
    torch.testing.assert_close(some["total"], theirs.total)
    assert some["text"] == ours["text"]
    assert some["misalignment"] != ours["misalignment"]


def assert_every_loss_falls(step: VerifierStep, *batches) -> set[str]:
    """Takes steps on the same batches; returns the names of the losses."""
    step.set_learning_rate(3e-3)
    history = [step(*batches) for _ in range(12)]
    for name in history[0]:
        values = torch.stack([losses[name] for losses in history])
        assert values[-3:].mean() < values[:3].mean(), name
    return set(history[0])


def test_a_few_cold_start_steps_lower_every_loss(tiny) -> None:
    checkpoint = read_checkpoint(tiny.folder)
    step = VerifierStep(checkpoint.model, checkpoint.processor)
    images = BatchMaker(tiny.writer, "cold-start", seed=0).batch(4)
    texts = BatchMaker(tiny.writer, "text", seed=0).batch(4)
    names = assert_every_loss_falls(step, images, texts)
    assert names == {"total", "text", "artifact", "misalignment", "text_rows"}


def test_answers_without_reasons_are_a_loss_of_their_own_with_a_probe(tiny) -> None:
    checkpoint = read_checkpoint(tiny.folder)
    step = VerifierStep(checkpoint.model, checkpoint.processor, answer_weight=1.0)
    images = BatchMaker(tiny.writer, "cold-start", seed=0, answer_only_share=0.5).batch(6)
    names = assert_every_loss_falls(step, images)
    assert names == {"total", "text", "artifact", "misalignment", "answers", "answer_probe"}
    reasons = BatchMaker(tiny.writer, "cold-start", seed=0, answer_only_share=0.0).batch(2)
    losses = step.image_losses(reasons)
    assert losses["answers"] == losses["answer_probe"] == 0


def test_a_few_perception_steps_lower_every_loss(tiny) -> None:
    checkpoint = read_checkpoint(tiny.folder)
    step = VerifierStep(checkpoint.model, checkpoint.processor, rows=PerceptionRows)
    images = BatchMaker(tiny.writer, "perception", seed=0).batch(4)
    names = assert_every_loss_falls(step, images)
    assert names == {"total", "text", "probe_labels", "probe_places"}
