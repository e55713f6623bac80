"""Measures steps of `tts-train flow` with random weights: seconds of drawing and update, memory.

    python examples/benchmarks/flow_speed.py --out sd35.json    # SD 3.5 medium, 512 x 512
    python examples/benchmarks/flow_speed.py --size tiny --side 64 --group 2 --steps 1 --out t.json

The transformer has the size of Stable Diffusion 3.5 medium, the VAE that of SD 3; text encoders are
small, but give states of the usual shape (77 tokens of CLIP, 256 of an absent T5). Adapters of rank
32 are trained as in recipes/training/flow.yaml. Rewards are random numbers, so the verifier's time
is not in the figures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tts_verifier.training.cold_start.settings import RunSettings
from tts_verifier.training.flow.formulas.advantages import compare_pictures
from tts_verifier.training.flow.model import FlowModel
from tts_verifier.training.flow.parts import make_samplers, make_weights
from tts_verifier.training.flow.sampling import drawing_steps
from tts_verifier.training.flow.settings import FlowSettings
from tts_verifier.training.flow.update import Updater
from tts_verifier.training.miniature.generator.vocabulary import build_clip_tokenizer

GIB = 2**30
MEDIUM = {
    "sample_size": 128,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
TINY = MEDIUM | {
    "num_layers": 2,
    "num_attention_heads": 2,
    "caption_projection_dim": 128,
    "dual_attention_layers": (0,),
}


def random_pipeline(size: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Returns a Stable Diffusion 3 pipeline of random weights."""
    with torch.device(device):
        transformer = SD3Transformer2DModel(
            in_channels=16, out_channels=16, **(MEDIUM if size == "medium" else TINY)
        ).to(dtype)
        widths = (128, 256, 512, 512) if size == "medium" else (8, 8, 8, 8)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=widths,
            layers_per_block=2,
            latent_channels=16,
            norm_num_groups=8,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    tokenizer = build_clip_tokenizer(Path(tempfile.mkdtemp()))
    tokenizer.model_max_length = 77
    encoders = [
        CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=width,
                projection_dim=width,
                num_hidden_layers=2,
                num_attention_heads=width // 64,
            )
        ).to(device, dtype)
        for width in (768, 1280)
    ]
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Takes steps and returns the figures."""
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    device = accelerator.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pictures = options.prompts * options.group
    run = RunSettings("random", "none", 1, pictures, lora_rank=32, recompute=True)
    settings = FlowSettings(
        options.prompts,
        options.group,
        ["a"],
        None,
        [{"verifier": "none"}],
        loss=options.loss,
        guidance=options.guidance,
        trained_steps=options.trained_steps,
        block=options.block,
        average=0.9,
    )
    model = FlowModel(
        random_pipeline(options.size, device, dtype), device, size=(options.side, options.side)
    )
    weights = make_weights(model, run, settings)
    updater = Updater(model, weights, settings, accelerator, learning_rate=1e-6, weight_decay=0)
    sampler, _ = make_samplers(model, weights, settings, updater.block, autocast=True)
    generator = torch.Generator().manual_seed(0)
    captions = ["a red circle"] * options.prompts
    seconds: dict[str, list[float]] = {"draw": [], "update": []}
    for step in range(1 + options.steps):
        began = time.perf_counter()
        noise = drawing_steps(
            settings.steps_drawn, settings.noise, None, np.random.default_rng(step)
        )
        drawn = sampler.draw(captions, options.group, step, noise)
        between = time.perf_counter()
        rewards = torch.rand(options.prompts, options.group, generator=generator)
        advantages = compare_pictures("scalar", rewards).values.flatten(0, 1).to(device)
        updater.step(step, step, drawn, advantages, 1e-6)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if step:
            seconds["draw"].append(between - began)
            seconds["update"].append(time.perf_counter() - between)
        print(f"step {step}: {between - began:.2f} s, {time.perf_counter() - between:.2f} s")
    means = {name: sum(values) / len(values) for name, values in seconds.items()}
    figures: dict[str, Any] = {
        **{name: value for name, value in vars(options).items() if name != "out"},
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(),
        "pictures": pictures,
        "draw_seconds": means["draw"],
        "update_seconds": means["update"],
        "pictures_a_second": pictures / sum(means.values()),
        "parameters": sum(p.numel() for p in model.transformer.parameters()),
        "trained": sum(p.numel() for p in weights.trained()),
    }
    if device.type == "cuda":
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=("medium", "tiny"), default="medium")
    parser.add_argument("--loss", choices=("policy", "awm", "nft"), default="policy")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--block", type=int, default=8)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--guidance", type=float, default=4.5)
    parser.add_argument("--trained-steps", type=int, default=None)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    figures = measure(options)
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
