"""A generator of random weights: a whole Stable Diffusion 3 folder, before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tts_verifier.shapes.vocabulary import SIZE
from tts_verifier.training.miniature.generator import vocabulary
from tts_verifier.training.miniature.generator.config import Sizes

PATCH = 2
HEAD = 32
SHIFT = 2.0
"""How far the schedule leans towards high noise, where the layout is decided."""


def build(sizes: Sizes, folder: Path, *, seed: int) -> Any:
    """Builds the pipeline; `folder` receives the tokenizer's files."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    torch.manual_seed(seed)
    words = vocabulary.build(folder / "tokenizer")
    width = sizes.text[1] + sizes.text_2[1]
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // 8,
        patch_size=PATCH,
        in_channels=sizes.latents,
        out_channels=sizes.latents,
        num_layers=sizes.depth,
        attention_head_dim=HEAD,
        num_attention_heads=sizes.heads,
        joint_attention_dim=width,
        caption_projection_dim=HEAD * sizes.heads,
        pooled_projection_dim=width,
        pos_embed_max_size=SIZE // 8 // PATCH,
    )
    _start_as_identity(transformer)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=_vae(sizes),
        text_encoder=_text(sizes.text, words),
        tokenizer=words,
        text_encoder_2=_text(sizes.text_2, words),
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _start_as_identity(transformer: Any) -> None:
    """Zeroes every modulation and the last layer ("adaLN-Zero", Peebles and Xie 2023)."""
    blocks = transformer.transformer_blocks
    norms = [norm for block in blocks for norm in (block.norm1, block.norm1_context)]
    for layer in (*(norm.linear for norm in (*norms, transformer.norm_out)), transformer.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def _vae(sizes: Sizes) -> Any:
    """Builds the autoencoder; its residual blocks start as the identity.

    A block's last convolution is zero at first (Zhang et al. 2019, "Fixup initialization"), so
    that colour and place reach the other end from the first step on.
    """
    from diffusers import AutoencoderKL
    from diffusers.models.resnet import ResnetBlock2D

    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=sizes.vae,
        layers_per_block=1,
        latent_channels=sizes.latents,
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


def _text(size: tuple[int, int], words: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    layers, width = size
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers + 1,  # the pipeline reads the state before the last layer
        num_attention_heads=width // 32,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def load(folder: Path) -> Any:
    """Loads a generator's folder in float32."""
    from diffusers import StableDiffusion3Pipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read_text(pipe: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encodes ids (B, T) as the pipeline does, with gradients.

    Returns:
        The context (B, T, width) of both encoders side by side, and the pooled (B, width).
    """
    states, pooled = [], []
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        out = encoder(ids, output_hidden_states=True)
        states.append(out.hidden_states[-2])
        pooled.append(out[0])
    return torch.cat(states, -1), torch.cat(pooled, -1)
