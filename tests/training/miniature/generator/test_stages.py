import torch
from tiny_training import GENERATOR_SIZES, GENERATOR_TRAINING

from tts_verifier.training.miniature.generator import train
from tts_verifier.training.miniature.generator.build import build_pipeline
from tts_verifier.training.miniature.generator.data import (
    caption_stream,
    render_captions,
)
from tts_verifier.training.miniature.generator.stages import crop_windows


def test_windows_hold_what_is_painted():
    maps = torch.ones(40, 4, 128, 128)
    maps[:, :, 100:110, 20:30] = 5.0
    windows = crop_windows(maps, 64, torch.Generator().manual_seed(0))
    assert windows.shape == (40, 4, 64, 64)
    assert (windows.amax((1, 2, 3)) == 5).float().mean() > 0.9
    assert torch.equal(crop_windows(maps, 128, torch.Generator()), maps)


def test_the_autoencoder_normalises_its_latents(tmp_path):
    pipe = build_pipeline(GENERATOR_SIZES, tmp_path / "words", seed=0)
    stage = train.make_stage("vae", pipe, GENERATOR_TRAINING, seed=0)
    stage.finish(batches=8)
    captions = next(caption_stream(pipe.tokenizer, 12, seed=5, workers=0))
    images = render_captions(captions, torch.Generator().manual_seed(5)).images
    latents = pipe.vae.encode(images * 2 - 1).latent_dist.mean
    scaled = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    assert abs(scaled.mean()) < 0.2
    assert abs(scaled.std() - 1) < 0.2
