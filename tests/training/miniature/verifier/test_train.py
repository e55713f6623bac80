from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.shapes.captions import captions
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.shapes.scene import sample_scenes
from tts_verifier.training.common.loop import Average, rate
from tts_verifier.training.miniature.verifier import train
from tts_verifier.training.miniature.verifier.checks import check, found, held_out
from tts_verifier.training.miniature.verifier.config import CONFIGS, Sizes
from tts_verifier.training.miniature.verifier.data import (
    Batch,
    Maker,
    Samples,
    Writer,
    seen_in_cells,
)
from tts_verifier.training.miniature.verifier.step import Eye, Step
from tts_verifier.training.verifier.sft_loss import IGNORED, loss
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load

TINY = Sizes(
    input_size=56,
    vision_depth=1,
    vision_width=32,
    vision_heads=2,
    vision_mlp=32,
    depth=1,
    width=32,
    heads=2,
    kv_heads=1,
    mlp=32,
    head_width=16,
    head_mlp=16,
    stem=(16, 8),
    stages=(8, 8, 8, 8),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A checkpoint of random weights, read for training."""
    folder = tmp_path_factory.mktemp("tiny")
    train.begin(folder, TINY, seed=0)
    c = train.read_checkpoint(folder)
    writer = Writer(c.words, c.model.config, 2, answer_only=0.3)
    return SimpleNamespace(folder=folder, checkpoint=c, writer=writer)


def text(tiny: SimpleNamespace, ids: torch.Tensor) -> str:
    return tiny.checkpoint.words._full.decode(ids.tolist(), skip_special_tokens=False)


def test_pictures_become_the_patches_that_the_processor_makes(tiny: SimpleNamespace) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    ours = Eye(tiny.checkpoint.processor)(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    theirs = [tiny.checkpoint.processor(Image.fromarray(p)).values for p in pixels]
    level = 1 / 255 / 0.26
    np.testing.assert_allclose(ours.numpy(), np.concatenate(theirs), atol=1.1 * level)


def test_stage_look_learns_the_list_of_objects_alone(tiny: SimpleNamespace) -> None:
    batch = Maker(tiny.writer, "look", seed=0).batch(4)
    assert batch.maps is None
    assert batch.cells is not None
    for ids, labels in zip(batch.ids, batch.labels, strict=True):
        learned = labels != IGNORED
        assert (ids[learned] == labels[learned]).all()
        assert text(tiny, ids[learned]).startswith("<think>\nObjects:")
        assert text(tiny, ids[learned]).endswith("\nChecks:")


def test_rows_without_pictures_are_given_the_list_and_learn_the_comparison(
    tiny: SimpleNamespace,
) -> None:
    batch = Maker(tiny.writer, "text", seed=0).batch(4)
    assert not (batch.ids == tiny.checkpoint.model.config.image_token_id).any()
    for ids, labels in zip(batch.ids, batch.labels, strict=True):
        assert "Objects:" in text(tiny, ids)
        learned = text(tiny, ids[labels != IGNORED])
        assert learned.startswith("\nChecks:")
        assert learned.endswith("; Misalignment Locations: <|misalignment|>")


def test_stage_judge_learns_the_whole_reply_and_sometimes_the_answer_alone(
    tiny: SimpleNamespace,
) -> None:
    batch = Maker(tiny.writer, "judge", seed=0, length=144).batch(16)
    assert batch.ids.shape == (16, 144)
    starts = {text(tiny, row[row != IGNORED])[:8] for row in batch.labels}
    assert starts == {"<think>\n", "Semantic"}
    assert batch.known is not None
    assert batch.known.all()


def samples() -> Samples:
    return Samples(np.full((8, 128, 128, 3), 240, np.uint8), captions(8, seed=0))


def test_what_the_oracle_does_not_know_of_a_sample_is_not_learned(tiny: SimpleNamespace) -> None:
    maker = Maker(tiny.writer, "judge", seed=1)
    batch = maker._sampled(samples(), 8)
    assert batch.known is not None
    assert batch.known[:, 0].all()
    assert not batch.known[:, 1].all()
    for row in batch.labels:
        learned = text(tiny, row[row != IGNORED])
        assert "Plausibility score: ; Artifact" in learned
        assert "Alignment score: ;" not in learned


def test_samples_are_read_from_a_folder_that_has_some(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must hold \*\.npz files"):
        Samples.read(tmp_path)
    given = samples()
    np.savez(tmp_path / "a.npz", images=given.images, captions=np.array(given.captions))
    read = Samples.read(tmp_path)
    assert read.captions == given.captions
    assert (read.images == given.images).all()


def test_the_step_runs_the_network_as_the_model_itself_does(tiny: SimpleNamespace) -> None:
    c = tiny.checkpoint
    step = Step(c.model, c.processor)
    batch = Maker(tiny.writer, "judge", seed=3).batch(3)
    ours = step.losses(batch)
    assert batch.maps is not None
    outputs = c.model(batch.ids, step.eye(batch.pixels), [(1, 4, 4)] * 3)
    maps = step.shrink @ (batch.maps.float() / 255) @ step.shrink.T
    theirs = loss(c.model, outputs, batch.labels, maps, grid=(2, 2))
    torch.testing.assert_close(ours.total, theirs.total)
    some = Step(c.model, c.processor, mapped=2).losses(batch)
    theirs = loss(c.model, outputs, batch.labels, maps[:2], grid=(2, 2))
    torch.testing.assert_close(some.total, theirs.total)
    assert some.text == ours.text
    assert some.misalignment != ours.misalignment


def test_a_few_steps_on_one_batch_lower_every_loss(tiny: SimpleNamespace) -> None:
    checkpoint = train.read_checkpoint(tiny.folder)
    step = Step(checkpoint.model, checkpoint.processor)
    step.at(3e-3)
    pictures = Maker(tiny.writer, "judge", seed=0).batch(4)
    texts = Maker(tiny.writer, "text", seed=0).batch(4)
    history = torch.stack([step(pictures, texts) for _ in range(25)])
    assert (history[-3:].mean(0) < history[:3].mean(0)).all()


def test_a_batch_on_its_way_keeps_what_there_is() -> None:
    ids, labels, pixels, cells = (torch.full((1,), float(n)) for n in range(4))
    batch = Batch(ids, labels, pixels, cells=cells).to(torch.device("cpu"))
    assert batch.maps is None
    assert batch.tensors() == [ids, labels, pixels, cells]


def test_a_cell_says_what_it_shows_most_of_and_where_that_is() -> None:
    specs = [parse_caption("a red circle")]
    scenes = sample_scenes(specs, torch.Generator().manual_seed(0))
    cells = seen_in_cells(scenes, 4)[0]
    there = cells[:, 0] >= 0
    assert 0 < there.sum() < 16
    assert (cells[there][:, :2] == torch.tensor([0.0, 0.0])).all()
    assert (cells[~there][:, :2] == -1).all()
    middles = torch.tensor([[16.0 + 32 * (i % 4), 16.0 + 32 * (i // 4)] for i in range(16)])
    centre = middles + 32 * cells[:, 2:4]
    torch.testing.assert_close(centre[there], scenes.centre[0, :1].expand(int(there.sum()), 2))


def test_a_stage_leaves_a_checkpoint_that_the_next_and_the_user_can_load(
    tiny: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    training = replace(CONFIGS["cpu"].training, batch=2, text_batch=2, check_pictures=4)
    run = train.Run("judge", tiny.folder, tmp_path / "judge", 0.01, 0, None)
    train.Trainer(run, training).train()
    assert "objects" in capsys.readouterr().out
    train.write_checkpoint(train.load_model(run.out), run.out, tmp_path / "export", torch.float16)
    loaded = load(tmp_path / "export")
    assert loaded.limits.max_new_tokens == 192
    assert set(check(loaded, held_out(2, seed=0))) >= {"plcc", "objects", "whole"}


def test_rows_are_learnt_from_again(tiny: SimpleNamespace) -> None:
    new = (Batch(torch.tensor([[i], [i]]), torch.tensor([[-i], [-i]])) for i in range(1, 4))
    batches = list(train.pooled(new, 3, torch.device("cpu"), seed=0))
    assert [len(batch.ids) for batch in batches] == [6, 6, 6]
    assert all(torch.equal(batch.ids, -batch.labels) for batch in batches)
    assert set(batches[0].ids.flatten().tolist()) == {1}
    assert len(set(batches[2].ids.flatten().tolist())) > 1


def test_workers_share_the_samples() -> None:
    samples = Samples(np.zeros((5, 128, 128, 3), np.uint8), list("abcde"))
    assert [samples.share(i, 2).captions for i in (0, 1)] == [["a", "c", "e"], ["b", "d"]]


def test_a_folder_written_anew_keeps_no_weights_of_before(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    tiny.checkpoint.model.save_pretrained(tmp_path, shard_bytes=50_000)
    assert len(list(tmp_path.glob("*.safetensors*"))) > 2
    tiny.checkpoint.model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    train.load_model(tmp_path)


def test_objects_count_when_they_are_named_and_placed() -> None:
    truth = "<think>\nObjects:#1 red star 80 80 40#2 blue ring 400 400 80"
    said = "<think>\nObjects:#1 red star 80 96 40#2 blue star 400 400 80\nChecks: ring"
    assert found(said, truth) == (2, 1, 1)
    assert found("nothing", truth) == (2, 0, 0)


def test_near_numbers_start_with_near_embeddings(tiny: SimpleNamespace) -> None:
    words = tiny.checkpoint.words
    table = tiny.checkpoint.model.model.embed_tokens.weight
    rows = table[[words.encode(f" {n}")[0] for n in (248, 256, 480)]]
    near, far = torch.cosine_similarity(rows[:1], rows[1:])
    assert near > 0.7
    assert far < 0.5


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    assert [rate(2.0, p) for p in (0.0, 0.3, 0.75, 1.0, 1.5)] == [0.0, 2.0, 1.0, 0.0, 0.0]


def test_the_average_follows_the_weights() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average = Average(model, 0.9)
    model.weight.data.fill_(7.0)
    for _ in range(100):
        average.update()
    torch.testing.assert_close(
        next(average.model.parameters()), torch.full((1, 1), 7.0), atol=0.01, rtol=0
    )


def test_both_presets_fit_the_repository() -> None:
    for name, limit in (("cpu", 8), ("gpu", 24)):
        sizes = CONFIGS[name].sizes
        assert sizes.input_size % 28 == 0
        assert train.megabytes(sizes) < limit
