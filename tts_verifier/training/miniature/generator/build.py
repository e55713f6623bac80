"""Builds the generator with random weights, and loads one: a Stable Diffusion 3 pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from tts_verifier.shapes.vocabulary import SIZE
from tts_verifier.training.miniature.generator.config import GeneratorSizes
from tts_verifier.training.miniature.generator.vocabulary import build_clip_tokenizer

PATCH_SIZE: Final = 2
"""Side of one image token, in latent cells."""
HEAD_WIDTH: Final = 32
SHIFT: Final = 2.0
"""How far the schedule leans towards high noise, where the layout is decided."""


def build_pipeline(sizes: GeneratorSizes, folder: Path, *, seed: int) -> Any:
    """Builds a pipeline of random weights.

    Args:
        sizes: its dimensions.
        folder: receives the tokenizer's files.
        seed: decides the weights.
    """
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    torch.manual_seed(seed)
    tokenizer = build_clip_tokenizer(folder / "tokenizer")
    text_width = sizes.text_encoder[1] + sizes.text_encoder_2[1]
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // 8,
        patch_size=PATCH_SIZE,
        in_channels=sizes.latent_channels,
        out_channels=sizes.latent_channels,
        num_layers=sizes.depth,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=sizes.heads,
        # The pipeline pads the encoders' states to this width, here by nothing.
        joint_attention_dim=text_width,
        caption_projection_dim=HEAD_WIDTH * sizes.heads,
        pooled_projection_dim=text_width,
        pos_embed_max_size=SIZE // 8 // PATCH_SIZE,
    )
    _start_as_identity(transformer)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=_build_vae(sizes),
        text_encoder=_build_text_encoder(sizes.text_encoder, tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=_build_text_encoder(sizes.text_encoder_2, tokenizer),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _start_as_identity(transformer: Any) -> None:
    """Zeroes every modulation and the last layer ("adaLN-Zero", Peebles and Xie 2023).

    Every block starts as the identity, and the first prediction is 0.
    """
    blocks = transformer.transformer_blocks
    norms = [norm for block in blocks for norm in (block.norm1, block.norm1_context)]
    for layer in (*(norm.linear for norm in (*norms, transformer.norm_out)), transformer.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def _build_vae(sizes: GeneratorSizes) -> Any:
    """Builds the autoencoder; its residual blocks start as the identity.

    A block's last convolution is zero at first (Zhang et al. 2019, "Fixup initialization"):
    colour and place reach the other end from the first step on.
    """
    from diffusers import AutoencoderKL
    from diffusers.models.resnet import ResnetBlock2D

    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=sizes.vae_widths,
        layers_per_block=1,
        latent_channels=sizes.latent_channels,
        norm_num_groups=2,  # more groups would normalise colour away
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=SIZE,
        shift_factor=0.0,
        scaling_factor=1.0,
    )
    for block in vae.modules():
        if isinstance(block, ResnetBlock2D):
            for parameter in block.conv2.parameters():
                torch.nn.init.zeros_(parameter)
    return vae


def _build_text_encoder(size: tuple[int, int], tokenizer: Any) -> Any:
    """Builds a CLIP text encoder of (layers, width)."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    layers, width = size
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers + 1,  # the pipeline reads the state before the last layer
        num_attention_heads=width // 32,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def encode_text(pipe: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encodes token ids (B, T) as the pipeline does, but with gradients.

    Returns:
        The context (B, T, width), both encoders side by side, and the pooled state (B, width).
    """
    contexts, pooled = [], []
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        # The state before the last layer, and the projection, as Stable Diffusion 3 uses them.
        out = encoder(ids, output_hidden_states=True)
        contexts.append(out.hidden_states[-2])
        pooled.append(out[0])
    return torch.cat(contexts, -1), torch.cat(pooled, -1)
