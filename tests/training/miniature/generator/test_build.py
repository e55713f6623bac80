import torch
from tiny_training import GENERATOR_SIZES

from tts_verifier.training.miniature.generator.build import build_pipeline


def test_a_new_transformer_moves_nothing_and_a_new_autoencoder_block_is_the_identity(tmp_path):
    pipe = build_pipeline(GENERATOR_SIZES, tmp_path, seed=0)
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
