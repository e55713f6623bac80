import random

import pytest
import torch

from tts_verifier.shapes.captions import is_held_out, random_specs
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.shapes.vocabulary import CATEGORIES, COLOURS, SHAPES
from tts_verifier.training.common.cuda_graph import Captured
from tts_verifier.training.common.replay_pool import Pool
from tts_verifier.training.miniature.generator import train, vocabulary
from tts_verifier.training.miniature.generator.build import build, load
from tts_verifier.training.miniature.generator.config import Sizes, Training
from tts_verifier.training.miniature.generator.data import FIELDS, draw, said, stream, tokens
from tts_verifier.training.miniature.generator.stages import cut
from tts_verifier.training.miniature.verifier.data import Samples

SIZES = Sizes((8, 8, 8, 8), 4, (1, 32), (1, 32), depth=2, heads=1)
TRAINING = Training(4, 64, 1e-3, 8, 1e-3, 8, 1e-3, workers=0, ema=0.9)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return build(SIZES, tmp_path_factory.mktemp("words"), seed=0)


def test_every_word_of_the_world_is_one_token(pipe):
    for word in vocabulary.words():
        assert len(pipe.tokenizer(word).input_ids) == 3, word


def test_any_text_has_tokens(pipe):
    ids = pipe.tokenizer("Ein Café ☕ mit Blick").input_ids
    assert pipe.tokenizer.decode(ids, skip_special_tokens=True).strip() == "ein café ☕ mit blick"
    assert tokens(pipe.tokenizer, ["a ring " * 40]).shape == (1, vocabulary.LENGTH)


def test_captions_say_what_the_fields_name():
    assert said(parse_caption("three red stars")) == [2, SHAPES.index("star"), 0, 6, 8, 2, 4]
    position = said(parse_caption("a circle above a blue ring"))
    assert position == [4, 0, 8, SHAPES.index("ring"), list(COLOURS).index("blue"), 0, 2]
    for spec in random_specs(60, random.Random(0)):
        assert all(0 <= value < most for value, most in zip(said(spec), FIELDS, strict=True))


def test_training_draws_only_captions_of_its_split(pipe):
    ids, *_ = next(stream(pipe.tokenizer, 240, seed=0, workers=0))
    texts = [pipe.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    assert 5 < texts.count("") < 50
    assert not any(is_held_out(parse_caption(text)) for text in texts if text)


def test_image_tokens_are_named_by_what_covers_them(pipe):
    asked = next(stream(pipe.tokenizer, 24, seed=1, workers=0))
    pictures = draw(asked, torch.Generator().manual_seed(0))
    assert pictures.images.shape == (24, 3, 128, 128)
    assert pictures.shape.shape == pictures.colour.shape == (24, 64)
    background = pictures.shape == len(SHAPES)
    assert torch.equal(background, pictures.colour == len(COLOURS))
    assert 0.6 < background.float().mean() < 0.99
    blocks = pictures.images.unfold(2, 16, 16).unfold(3, 16, 16)
    dark = (blocks < 0.6).any(1).float().mean((-1, -2)).flatten(1)
    assert dark[background].mean() < 0.1 < dark[~background].mean()


def test_windows_hold_what_is_painted():
    maps = torch.ones(40, 4, 128, 128)
    maps[:, :, 100:110, 20:30] = 5.0
    windows = cut(maps, 64, torch.Generator().manual_seed(0))
    assert windows.shape == (40, 4, 64, 64)
    assert (windows.amax((1, 2, 3)) == 5).float().mean() > 0.9
    assert torch.equal(cut(maps, 128, torch.Generator()), maps)


def test_a_pool_forgets_the_oldest_and_keeps_rows_whole():
    pool = Pool(4, torch.Generator().manual_seed(0))
    pool.add(torch.tensor([1, 2]), torch.tensor([10.0, 20.0]))
    assert set(pool.draw(50)[0].tolist()) == {1, 2}
    for first in (3, 5):
        pool.add(torch.tensor([first, first + 1]), torch.tensor([10.0 * first, 10.0 * first + 10]))
    ids, values = pool.draw(100)
    assert set(ids.tolist()) == {3, 4, 5, 6}
    assert torch.equal(values, 10.0 * ids)


def test_a_new_transformer_moves_nothing_and_a_new_autoencoder_block_is_the_identity(tmp_path):
    pipe = build(SIZES, tmp_path, seed=0)
    width = pipe.transformer.config.joint_attention_dim
    velocity = pipe.transformer(
        hidden_states=torch.randn(1, 4, 16, 16),
        timestep=torch.tensor([500.0]),
        encoder_hidden_states=torch.randn(1, 24, width),
        pooled_projections=torch.randn(1, width),
    ).sample
    assert not velocity.any()
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(pipe.vae.encoder.mid_block.resnets[0](x, None), x)


@pytest.mark.parametrize("name", train.STAGES)
def test_a_stage_trains_and_leaves_a_whole_pipeline(name, tmp_path):
    pipe = build(SIZES, tmp_path / "words", seed=0)
    stage = train.make_stage(name, pipe, TRAINING, seed=0)
    trainer = train.Trainer(pipe, stage, ema=0.5)
    batch = next(stage.batches())
    torch.manual_seed(0)
    first = trainer.step(*batch)[0]
    for _ in range(15):
        torch.manual_seed(0)
        last = trainer.step(*batch)[0]
        trainer.average.update()
    assert last < 0.95 * first
    live = {k: v.clone() for k, v in trainer.module.state_dict().items()}
    trainer.save(tmp_path / "out")
    assert all(torch.equal(v, live[k]) for k, v in trainer.module.state_dict().items())
    loaded = load(tmp_path / "out")
    seed = torch.Generator().manual_seed(0)
    image = loaded("a red circle", num_inference_steps=1, generator=seed).images[0]
    assert image.size == (128, 128)


def test_the_autoencoder_normalises_its_latents(tmp_path):
    pipe = build(SIZES, tmp_path / "words", seed=0)
    stage = train.make_stage("vae", pipe, TRAINING, seed=0)
    stage.finish(pipe, count=8)
    asked = next(stream(pipe.tokenizer, 12, seed=5, workers=0))
    images = draw(asked, torch.Generator().manual_seed(5)).images
    latents = pipe.vae.encode(images * 2 - 1).latent_dist.mean
    scaled = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    assert abs(scaled.mean()) < 0.2
    assert abs(scaled.std() - 1) < 0.2


def test_export_is_half_precision_and_draws(pipe, tmp_path):
    train.export(pipe, tmp_path)
    weights = list(tmp_path.glob("transformer/*.safetensors"))
    assert len(weights) == 1
    assert not any("_name_or_path" in path.read_text() for path in tmp_path.rglob("*.json"))
    assert weights[0].stat().st_size < 2.2 * sum(p.numel() for p in pipe.transformer.parameters())
    found = train.check(load(tmp_path), 6)
    assert found["all"] == 0.0
    assert set(found) == {*CATEGORIES, "all"}
    train.sample(load(tmp_path), 6, tmp_path / "samples", seed=0)
    samples = Samples.read(tmp_path / "samples")
    assert samples.images.shape == (6, 128, 128, 3)
    assert not any(is_held_out(parse_caption(caption)) for caption in samples.captions)
    pipe.transformer.float()
    pipe.vae.float()


def test_a_captured_step_is_called_as_it_is_on_a_cpu():
    calls = []
    step = Captured(lambda x: calls.append(x) or x * 2)
    assert step(torch.ones(2)).tolist() == [2.0, 2.0]
    assert len(calls) == 1


def test_an_unknown_config_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["generator", "--config", "tpu", "--stage", "vae"])
    with pytest.raises(SystemExit):
        train.main()
    assert "invalid choice: 'tpu'" in capsys.readouterr().err
