from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from seeded import seeded

from tts_verifier.errors import InputError
from tts_verifier.shapes.captions import captions
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.shapes.readers.constraints import Thing, compare
from tts_verifier.shapes.scene import sample_scenes
from tts_verifier.training.miniature.verifier.data import (
    BatchMaker,
    ColdStartRows,
    GeneratorSamples,
    PerceptionRows,
    TextRows,
    probe_targets,
)
from tts_verifier.training.miniature.verifier.rows import CHECKS, check_targets
from tts_verifier.training.verifier.sft_loss import IGNORED


def grey_samples() -> GeneratorSamples:
    return GeneratorSamples(np.full((8, 128, 128, 3), 240, np.uint8), captions(8, seed=0))


def test_perception_rows_learn_the_list_of_objects_alone(tiny) -> None:
    rows = BatchMaker(tiny.writer, "perception", seed=0).batch(4)
    assert isinstance(rows, PerceptionRows)
    for ids, labels in zip(rows.ids, rows.labels, strict=True):
        learned = labels != IGNORED
        assert (ids[learned] == labels[learned]).all()
        assert tiny.decode(ids[learned]).startswith("<think>\nObjects:")
        assert tiny.decode(ids[learned]).endswith("\nChecks:")


def test_rows_without_images_are_given_the_list_and_learn_the_comparison(tiny) -> None:
    rows = BatchMaker(tiny.writer, "text", seed=0).batch(4)
    assert isinstance(rows, TextRows)
    assert not (rows.ids == tiny.checkpoint.model.config.image_token_id).any()
    for ids, labels in zip(rows.ids, rows.labels, strict=True):
        assert "Objects:" in tiny.decode(ids)
        learned = tiny.decode(ids[labels != IGNORED])
        assert learned.startswith("\nChecks:")
        assert learned.endswith("; Misalignment Locations: <|misalignment|>")


def test_cold_start_rows_learn_the_whole_reply_and_sometimes_the_answer_alone(tiny) -> None:
    maker = BatchMaker(tiny.writer, "cold-start", seed=0, length=144, answer_only_share=0.3)
    rows = maker.batch(16)
    assert isinstance(rows, ColdStartRows)
    assert rows.ids.shape == (16, 144)
    starts = {tiny.decode(row[row != IGNORED])[:8] for row in rows.labels}
    assert starts == {"<think>\n", "Semantic"}
    assert rows.known.all()
    alone = [tiny.decode(row[row != IGNORED]).startswith("Semantic") for row in rows.labels]
    assert (rows.checks != IGNORED).any(1).tolist() == alone


def test_the_checks_say_what_the_image_shows_of_its_caption() -> None:
    spec = parse_caption("a red circle left of a square")
    circle = Thing("circle", "blue", (20.0, 100.0), (10.0, 90.0, 30.0, 110.0))
    star = Thing("star", "red", (120.0, 128.0), (110.0, 118.0, 128.0, 128.0))
    checks = check_targets(spec, compare(spec, [circle, star]))
    assert len(checks) == CHECKS
    # Object and colour of the circle, the square, no count, relation, nothing else.
    assert checks[:7] == [1, 0, 0, IGNORED, IGNORED, 1, 1]
    assert checks[7:] == [2, 1, 6, 7, 7]
    counted = parse_caption("two stars")
    assert check_targets(counted, compare(counted, [star]))[8:] == [IGNORED] * 4


def test_what_the_oracle_does_not_know_of_a_sample_is_not_learned(tiny) -> None:
    maker = BatchMaker(tiny.writer, "cold-start", seed=1, samples=grey_samples(), sample_share=1.0)
    rows = maker.batch(8)
    assert isinstance(rows, ColdStartRows)
    assert rows.known[:, 0].all()
    assert not rows.known[:, 1].all()
    for row in rows.labels:
        learned = tiny.decode(row[row != IGNORED])
        assert "Plausibility score: ; Artifact" in learned
        assert "Alignment score: ;" not in learned


def test_samples_are_read_from_a_folder_that_has_some(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must hold \*\.npz files"):
        GeneratorSamples.read(tmp_path)
    samples = grey_samples()
    np.savez(tmp_path / "a.npz", images=samples.images, captions=np.array(samples.captions))
    read = GeneratorSamples.read(tmp_path)
    assert read.captions == samples.captions
    assert (read.images == samples.images).all()


def test_workers_share_the_samples() -> None:
    samples = GeneratorSamples(np.zeros((5, 128, 128, 3), np.uint8), list("abcde"))
    assert [samples.share(i, 2).captions for i in (0, 1)] == [["a", "c", "e"], ["b", "d"]]


def test_a_probe_target_says_what_a_token_shows_most_of_and_where_that_is() -> None:
    scenes = sample_scenes([parse_caption("a red circle")], seeded(0))
    cells = probe_targets(scenes, 4)[0]
    shown = cells[:, 0] >= 0
    assert 0 < shown.sum() < 16
    assert (cells[shown][:, :2] == torch.tensor([0.0, 0.0])).all()
    assert (cells[~shown][:, :2] == -1).all()
    middles = torch.tensor([[16.0 + 32 * (i % 4), 16.0 + 32 * (i // 4)] for i in range(16)])
    centre = middles + 32 * cells[:, 2:4]
    torch.testing.assert_close(centre[shown], scenes.centre[0, :1].expand(int(shown.sum()), 2))
