import pytest
import torch
from cases import mostly_slow
from tiny_training import GENERATOR_SIZES, GENERATOR_TRAINING

from tts_verifier.generators.diffusers.loading import load_pipeline
from tts_verifier.shapes.captions import is_held_out
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.shapes.vocabulary import CATEGORIES
from tts_verifier.training.miniature.generator import train
from tts_verifier.training.miniature.generator.build import build_pipeline
from tts_verifier.training.miniature.verifier.data import GeneratorSamples


@pytest.mark.parametrize("name", mostly_slow(train.STAGES, quick=list(train.STAGES)[::2]))
def test_a_stage_trains_and_leaves_a_whole_pipeline(name, tmp_path):
    pipe = build_pipeline(GENERATOR_SIZES, tmp_path / "words", seed=0)
    stage = train.make_stage(name, pipe, GENERATOR_TRAINING, seed=0)
    trainer = train.GeneratorTrainer(pipe, stage, ema_decay=0.5)
    batch = next(stage.batches())
    torch.manual_seed(0)
    first = trainer.step(*batch)["total"]
    for _ in range(6):
        torch.manual_seed(0)
        last = trainer.step(*batch)["total"]
        trainer.average.update()
    assert last < 0.95 * first
    live = {k: v.clone() for k, v in trainer.module.state_dict().items()}
    trainer.save(tmp_path / "out")
    assert all(torch.equal(v, live[k]) for k, v in trainer.module.state_dict().items())
    loaded = load_pipeline(tmp_path / "out", device="cpu")
    seed = torch.Generator().manual_seed(0)
    image = loaded("a red circle", num_inference_steps=1, generator=seed).images[0]
    assert image.size == (128, 128)


def test_export_is_half_precision_and_generates(pipe, tmp_path):
    train.export(pipe, tmp_path)
    weights = list(tmp_path.glob("transformer/*.safetensors"))
    assert len(weights) == 1
    assert not any("_name_or_path" in path.read_text() for path in tmp_path.rglob("*.json"))
    assert weights[0].stat().st_size < 2.2 * sum(p.numel() for p in pipe.transformer.parameters())
    found = train.pass_rates(load_pipeline(tmp_path, device="cpu"), 6)
    assert found["all"] == 0.0
    assert set(found) == {*CATEGORIES, "all"}
    train.write_samples(load_pipeline(tmp_path, device="cpu"), 6, tmp_path / "samples", seed=0)
    samples = GeneratorSamples.read(tmp_path / "samples")
    assert samples.images.shape == (6, 128, 128, 3)
    assert not any(is_held_out(parse_caption(caption)) for caption in samples.captions)
    pipe.transformer.float()
    pipe.vae.float()


def test_an_unknown_config_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["generator", "--config", "tpu", "--stage", "vae"])
    with pytest.raises(SystemExit):
        train.main()
    assert "invalid choice: 'tpu'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "flow", "--init", "x"], "--stage flow needs --out"),
        (["--stage", "check"], "--stage check needs --init"),
        (["--stage", "export", "--out", "x"], "--stage export needs --init"),
    ],
)
def test_a_missing_folder_is_refused_before_training(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["generator", *arguments])
    with pytest.raises(SystemExit):
        train.main()
    assert message in capsys.readouterr().err
