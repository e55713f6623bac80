"""The cost of the recipes for released models: bytes of weights, operations per image, seconds.

    python examples/benchmarks/recipe_costs.py

It loads no weights: it builds the networks on the meta device, at the sizes of their config files,
and counts the operations of one evaluation. Seconds are an estimate: operations divided by the
`--tflops` that a GPU reaches, by default 400, which is 40 % of an H100's peak in bfloat16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import yaml
from random_models import clip, image_doctor_model, sd35, t5
from torch.utils.flop_counter import FlopCounterMode

from tts_verifier.loading.memory import weight_bytes

RECIPES = Path(__file__).parents[2] / "recipes"
GIB = 2**30


@dataclass
class Model:
    """The networks of a pipeline, and how its denoiser and VAE are called for one image."""

    denoiser: Any
    text_encoders: list[Any]
    vae: Any
    call: dict[str, Any]
    """The arguments of the denoiser."""
    latents: tuple[int, ...]
    """The shape of the latents that the VAE decodes."""
    rows_per_step: int = 2
    """Rows of the denoiser that an image takes at every step; 2 with guidance."""


def blank(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device="meta")


def kl_vae(channels: int) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=channels,
    )


def stable_diffusion_3(side: int) -> Model:
    pipe = sd35("meta")
    size = side // 8
    call = {
        "hidden_states": blank(1, 16, size, size),
        "encoder_hidden_states": blank(1, 77 + 256, 4096),
        "pooled_projections": blank(1, 2048),
        "timestep": blank(1),
    }
    texts = [pipe.text_encoder, pipe.text_encoder_2, t5(tiny=False)]
    return Model(pipe.transformer, texts, pipe.vae, call, (1, 16, size, size))


def flux(side: int) -> Model:
    size = side // 16
    call = {
        "hidden_states": blank(1, size * size, 64),
        "encoder_hidden_states": blank(1, 512, 4096),
        "pooled_projections": blank(1, 768),
        "timestep": blank(1),
        "guidance": blank(1),
        "img_ids": blank(size * size, 3),
        "txt_ids": blank(512, 3),
    }
    denoiser = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    texts = [clip(768, 12, 12, "quick_gelu"), t5(tiny=False)]
    return Model(denoiser, texts, kl_vae(16), call, (1, 16, side // 8, side // 8), rows_per_step=1)


def sdxl(side: int) -> Model:
    size = side // 8
    call = {
        "sample": blank(1, 4, size, size),
        "timestep": blank(1),
        "encoder_hidden_states": blank(1, 77, 2048),
        "added_cond_kwargs": {"text_embeds": blank(1, 1280), "time_ids": blank(1, 6)},
    }
    denoiser = diffusers.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    texts = [clip(768, 12, 12, "quick_gelu"), clip(1280, 32, 20, "gelu")]
    return Model(denoiser, texts, kl_vae(4), call, (1, 4, size, size))


def sana(side: int) -> Model:
    size = side // 32
    call = {
        "hidden_states": blank(1, 32, size, size),
        "encoder_hidden_states": blank(1, 300, 2304),
        "timestep": blank(1),
    }
    vae = diffusers.AutoencoderDC(
        latent_channels=32,
        encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        encoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
        decoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
        encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
        decoder_layers_per_block=(3,) * 6,
        encoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )
    gemma = transformers.Gemma2Model(transformers.Gemma2Config())
    denoiser = diffusers.SanaTransformer2DModel()
    return Model(denoiser, [gemma], vae, call, (1, 32, size, size))


MODELS: dict[str, Callable[[int], Model]] = {
    "sd35": stable_diffusion_3,
    "flux": flux,
    "sdxl": sdxl,
    "sana": sana,
}


def count_operations(work: Callable[[], Any]) -> float:
    """Returns the floating-point operations of a call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def half_precision_gib(modules: list[Any]) -> float:
    """Returns the GiB of weights in 16 bits."""
    return sum(weight_bytes([m]) / 4 * 2 for m in modules) / GIB


def table_row(name: str, tflops: float) -> str:
    """Returns a recipe's line of the table."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    settings, candidates = recipe["generator"], recipe["strategy"]["n"]
    with torch.device("meta"):
        model = MODELS[name](settings["height"])
        step = count_operations(lambda: model.denoiser(**model.call)) * model.rows_per_step
        decoding = count_operations(lambda: model.vae.decode(blank(*model.latents)))
    total = settings["steps"] * step + decoding
    sizes = [
        half_precision_gib([model.denoiser]),
        half_precision_gib(model.text_encoders),
        half_precision_gib([model.vae]),
    ]
    verifier = half_precision_gib([image_doctor_model("meta")])
    cells = [name, *(f"{size:.1f}" for size in sizes), f"{verifier:.1f}"]
    cells += [f"{sum(sizes) + verifier:.1f}", f"{total / 1e12:.0f}"]
    cells += [f"{total / 1e12 / tflops:.1f}", f"{candidates * total / 1e12 / tflops:.0f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tflops", type=float, default=400)
    args = parser.parse_args()
    print("| recipe | denoiser GiB | text | VAE | verifier | all | TFLOP a picture | s | s of n |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in MODELS:
        print(table_row(name, args.tflops), flush=True)


if __name__ == "__main__":
    main()
