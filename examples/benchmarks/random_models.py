"""Stable Diffusion 3.5 medium and ImageDoctor with random weights, made directly on a device.

Nothing is downloaded: the sizes are those of the released config files, and the tokenizers know
single letters only. `tiny` makes the same parts with a few thousand weights, for a dry run on a
CPU.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))
import make_checkpoint

from tts_verifier.verifiers.imagedoctor import ImageDoctor
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.requests import (
    GeneratedReply,
    GenerationLimits,
    GenerationRequest,
)
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer

TEXT_TOKENS = 366
"""How many tokens the released tokenizer makes of instruction and caption; ours makes one of each
letter."""


@contextmanager
def made_on(device: str) -> Iterator[None]:
    """Makes the weights of new modules on a device: bfloat16 on a GPU, float32 elsewhere."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.startswith("cuda") else torch.float32)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def tokenizer(length: int) -> transformers.CLIPTokenizer:
    """Returns a tokenizer that knows single letters."""
    letters = [f"{chr(c)}{end}" for c in range(97, 123) for end in ("", "</w>")]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters]
    with tempfile.TemporaryDirectory() as folder:
        ids = {piece: i for i, piece in enumerate(vocabulary)}
        Path(folder, "vocab.json").write_text(json.dumps(ids), "utf-8")
        Path(folder, "merges.txt").write_text("#version: 0.2\n", "utf-8")
        return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=length)


def clip(width: int, layers: int, heads: int, act: str) -> transformers.CLIPTextModelWithProjection:
    """Returns a CLIP text encoder."""
    config = transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        hidden_act=act,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return transformers.CLIPTextModelWithProjection(config).eval()


def t5(tiny: bool) -> transformers.T5EncoderModel:
    """Returns the encoder of T5 v1.1 XXL, with 4.8 billion weights."""
    width, layers, heads, inner = (32, 1, 2, 64) if tiny else (4096, 24, 64, 10240)
    config = transformers.T5Config(
        d_model=width,
        d_kv=64,
        d_ff=inner,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5EncoderModel(config).eval()


def sd35(device: str, *, tiny: bool = False) -> Any:
    """Returns the Stable Diffusion 3.5 medium pipeline without T5, which is optional."""
    heads, size, layers, side = (2, 8, 2, 2) if tiny else (24, 64, 24, 128)
    blocks = (8, 8) if tiny else (128, 256, 512, 512)
    widths = (16, 16) if tiny else (768, 1280)
    with made_on(device):
        denoiser = diffusers.SD3Transformer2DModel(
            sample_size=side,
            in_channels=16,
            out_channels=16,
            num_layers=layers,
            attention_head_dim=size,
            num_attention_heads=heads,
            joint_attention_dim=32 if tiny else 4096,
            caption_projection_dim=heads * size,
            pooled_projection_dim=sum(widths),
            pos_embed_max_size=8 if tiny else 384,
            dual_attention_layers=tuple(range(1 if tiny else 13)),
            qk_norm="rms_norm",
        ).eval()
        vae = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(blocks),
            up_block_types=("UpDecoderBlock2D",) * len(blocks),
            block_out_channels=blocks,
            layers_per_block=2,
            latent_channels=16,
            norm_num_groups=4 if tiny else 32,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval()
        texts = [
            clip(widths[0], 2 if tiny else 12, 2 if tiny else 12, "quick_gelu"),
            clip(widths[1], 2 if tiny else 32, 2 if tiny else 20, "gelu"),
        ]
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=denoiser,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=texts[0],
        tokenizer=tokenizer(77),
        text_encoder_2=texts[1],
        tokenizer_2=tokenizer(77),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def add_t5(pipe: Any, *, tiny: bool = False) -> None:
    """Adds T5, the pipeline's third text encoder."""
    with made_on(str(pipe.device)):
        encoder = t5(tiny)
    pipe.register_modules(text_encoder_3=encoder, tokenizer_3=tokenizer(256))


class BothMapsEngine(Engine):
    """An engine whose every reply asks for both maps, because random weights never do."""

    def replies(
        self, requests: Iterable[GenerationRequest], *, expected: int | None = None
    ) -> Iterator[tuple[int, GeneratedReply]]:
        """Generates a reply to every request."""
        for number, reply in super().replies(requests, expected=expected):
            yield number, replace(reply, has_map=(True, True))


class ShortPrompts(PromptTokenizer):
    """A tokenizer whose prompts are as long as those of the released tokenizer."""

    def encode_conversation(self, prompt: str, *, image_tokens: int, reasoning: bool) -> list[int]:
        """Returns the ids of a conversation, with its text cut off."""
        ids = super().encode_conversation(prompt, image_tokens=image_tokens, reasoning=reasoning)
        behind = ids.index(self.control.vision_end)
        return [*ids[:behind], *ids[behind : behind + max(TEXT_TOKENS + image_tokens - behind, 1)]]


def image_doctor_model(device: str, *, tiny: bool = False) -> ImageDoctorModel:
    """Returns the verifier's network, with 3.8 billion weights."""
    config = ImageDoctorConfig.from_dict(make_checkpoint.config("tiny" if tiny else "3b"))
    with made_on(device):
        return ImageDoctorModel(config).to(device).requires_grad_(False).eval()


def image_doctor(
    model: ImageDoctorModel, *, tokens: int, ends: bool = False, tiny: bool = False
) -> ImageDoctor:
    """Returns a verifier whose replies have `tokens` tokens and both maps.

    Args:
        model: the network.
        tokens: the length of every reply.
        ends: ends every reply with its first token, in buffers for `tokens` tokens.
        tiny: whether the network is the tiny one.
    """
    raw = make_checkpoint.config("tiny" if tiny else "3b")
    words = ShortPrompts(make_checkpoint.tokenizer(raw), model.config)
    processor = Processor(input_size=112 if tiny else 512)
    limits = GenerationLimits(
        tokens, tuple(range(len(model.lm_head.weight))) if ends else (), penalty=1.05
    )
    verifier = ImageDoctor(Checkpoint(model, words, processor, limits))
    verifier.replicas[0].engine = BothMapsEngine(model, limits, sequences=verifier.batch_size)
    return verifier
