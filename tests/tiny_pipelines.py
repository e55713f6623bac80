"""Diffusers pipelines of a few thousand random weights, built from configs."""

import json

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from tts_verifier.types import InMemory, Trial


def tokenizer(folder):
    letters = [f"{chr(c)}{end}" for c in range(97, 123) for end in ("", "</w>")]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def text_config(vocab_size):
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def vae(channels, shift=0.0):
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        shift_factor=shift,
    )


def sd3(folder, channels=16):
    """A Stable Diffusion 3 of 16 x 16 pixels; its inpainting class requires 16 channels."""
    torch.manual_seed(0)
    clip_tokenizer = tokenizer(folder)
    config = text_config(len(clip_tokenizer))
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=channels,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            out_channels=channels,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(channels, shift=0.5),
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=clip_tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=clip_tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd15(folder):
    """A Stable Diffusion 1.5 of 16 x 16 pixels."""
    torch.manual_seed(0)
    clip_tokenizer = tokenizer(folder)
    pipe = StableDiffusionPipeline(
        vae=vae(4),
        text_encoder=CLIPTextModel(text_config(len(clip_tokenizer))),
        tokenizer=clip_tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=16,
        ),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def as_parent(sample, name="parent"):
    """Returns the trial that a sample becomes."""
    image, state = sample.image, sample.state
    return Trial(
        id=name,
        prompt=sample.job.prompt,
        round=0,
        proposal=sample.job.proposal,
        progress=sample.progress,
        image=image and InMemory(image),
        size=image and image.size,
        state=state and InMemory(state),
    )


def pixels(sample):
    """The pixels of a sample as signed integers, which may be subtracted."""
    assert not sample.error
    return np.asarray(sample.image).astype(int)


CALL = {"num_inference_steps": 2, "guidance_scale": 4.0, "max_sequence_length": 16}
"""The arguments of a quick call of `sd3`."""


def same(one, other):
    return np.array_equal(np.asarray(one), np.asarray(other))
